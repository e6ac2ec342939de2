"""The one exception that reaches users."""


class UserError(Exception):
    """A mistake or fault the user can act on.

    The message says what happened, to which file, dataset or run, and what to do now; the
    command line prints it without a traceback and exits with status 1.
    """
