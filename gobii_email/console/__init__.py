"""The pages of mailbox owners and operators, under /console/."""
