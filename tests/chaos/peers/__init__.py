"""Other ways of sending mail from Django, in front of the same server and the same faults.

Each runs in a virtual environment of its own, with the settings that suit it best; nothing of them is
imported by the service or its tests. `compare` runs in the project's environment, all else in theirs.
"""
