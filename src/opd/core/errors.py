"""The one error that a user is meant to see: a single clear line instead of a traceback."""


class UserError(Exception):
    """Input or settings that the pipeline refuses.

    ``what`` is wrong, ``where`` (config key, or file and row), and the ``remedy``. ``str()`` is
    one line; the command line prints it without a traceback and exits with 2.
    """

    def __init__(self, what: str, where: str, remedy: str) -> None:
        super().__init__(what, where, remedy)
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        return " ".join(f"{self.where}: {self.what}; {self.remedy}".split())


class LeftOut(UserError):
    """Why one model or one row of many cannot be measured, where the others can.

    Its text may become part of what a stage makes, so it counts in the digest of the code, which
    the text of a plain ``UserError`` does not.
    """
