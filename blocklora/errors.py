"""The exceptions whose message is shown to users."""


class UserError(Exception):
    """A mistake or fault that the user can do something about.

    The message says what happened, to which file, dataset or run, and what to do now. The command
    line prints it without a traceback and exits with `exit_status`.
    """

    exit_status = 1


class Interrupted(UserError):
    """The process stopped before its work was done; the same command will continue it.

    A signal asked the process to stop, or another process took over its lock. The exit status is
    EX_TEMPFAIL of sysexits.h, a temporary failure that is worth a new attempt.
    """

    exit_status = 75
