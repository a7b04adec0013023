"""Errors in the form that OpenAI's clients read."""

from typing import Any

_TYPES = {
  401: 'authentication_error',
  429: 'rate_limit_error',
  500: 'server_error',
  503: 'server_error',
}

# Characters of a message; a longer one is mostly what the client sent.
_MOST_SAID = 240
_FIRST_SAID, _LAST_SAID = 140, 55
_LONGEST_NAME = 64


class ApiError(Exception):
  """An answer that is an error.

  Attributes:
    status: of HTTP.
    message: what is wrong and what to do. A long one loses its middle: a
      client is not sent back more than 200 characters of its own.
    param: the field that it is about; None if there is no single one, or the
      name is longer than that of any field.
    code: a word for programs; None if the status says it all.
    retry_after: seconds after which to try again; None for never.
  """

  def __init__(
    self,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    retry_after: float | None = None,
  ):
    if len(message) > _MOST_SAID:
      message = f'{message[:_FIRST_SAID]} ... {message[-_LAST_SAID:]}'
    if param is not None and len(param) > _LONGEST_NAME:
      param = None
    super().__init__(message)
    self.status, self.message = status, message
    self.param, self.code = param, code
    self.retry_after = retry_after

  def body(self) -> dict[str, Any]:
    """The body of the answer."""
    return {
      'error': {
        'message': self.message,
        'type': _TYPES.get(self.status, 'invalid_request_error'),
        'param': self.param,
        'code': self.code,
      }
    }

  def headers(self) -> dict[str, str]:
    """The headers of the answer."""
    found = {}
    if self.retry_after is not None:
      found['retry-after'] = str(max(1, round(self.retry_after)))
    if self.status == 401:
      found['www-authenticate'] = 'Bearer'
    return found


def closing() -> ApiError:
  """The error of all requests once the server is closing down."""
  return ApiError(
    503,
    'the server is closing down; send it to another',
    code='closing',
    retry_after=5,
  )
