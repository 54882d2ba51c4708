"""The one error a user can mend."""


class InputError(ValueError):
    """Bad input: one line that names the file, field or language and says what to do.

    The command line prints the line and exits with code 2.
    """
