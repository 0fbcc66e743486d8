"""What is true about e-mail: no Django, no sockets, no clock."""
