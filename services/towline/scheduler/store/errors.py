"""What can be wrong with a data folder.

::

    StoreError
    ├── InUseError      another scheduler has the folder
    ├── NewerFileError  written by a newer version
    └── DamagedError    not a database, or a broken one
"""


class StoreError(Exception):
    """The data folder can't be used. The message is one line for a person."""


class InUseError(StoreError):
    """Another process has the folder open."""


class NewerFileError(StoreError):
    """The file was written by a newer version."""


class DamagedError(StoreError):
    """The file is no scheduler database, or is broken."""
