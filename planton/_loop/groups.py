"""Exceptions that nurseries have wrapped."""


def unwrapped(error: BaseException) -> BaseException:
    """Give the one exception that groups of one are wrapped around."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
