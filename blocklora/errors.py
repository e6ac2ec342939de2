"""The exceptions that reach users."""


class UserError(Exception):
    """A mistake or fault the user can act on.

    The message says what happened, to which file, dataset or run, and what to do now; the
    command line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 1


class Interrupted(UserError):
    """A signal asked the process to stop; its work is saved, and the same command goes on.

    The status is EX_TEMPFAIL of sysexits.h: a temporary failure, to be tried again.
    """

    exit_status = 75
