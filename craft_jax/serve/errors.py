"""What went wrong, as OpenAI's clients read it."""

from typing import Any

_TYPES = {
  401: 'authentication_error',
  429: 'rate_limit_error',
  500: 'server_error',
  503: 'server_error',
}


class ApiError(Exception):
  """An answer that is an error.

  Attributes:
    status: of HTTP.
    message: what is wrong and what to do.
    param: the field that it is about; None if no single one.
    code: a word for programs; None if the status says it all.
    retry_after: seconds after which it may go better; None for never.
  """

  def __init__(
    self,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    retry_after: float | None = None,
  ):
    super().__init__(message)
    self.status, self.message = status, message
    self.param, self.code = param, code
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    """The object that is sent."""
    return {
      'error': {
        'message': self.message,
        'type': _TYPES.get(self.status, 'invalid_request_error'),
        'param': self.param,
        'code': self.code,
      }
    }

  def headers(self) -> dict[str, str]:
    """Those that go with it."""
    found = {}
    if self.retry_after is not None:
      found['retry-after'] = str(max(1, round(self.retry_after)))
    if self.status == 401:
      found['www-authenticate'] = 'Bearer'
    return found


def closing() -> ApiError:
  """What is told to whom nothing more is given."""
  return ApiError(
    503,
    'the server is closing down; send it to another',
    code='closing',
    retry_after=5,
  )
