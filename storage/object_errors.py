"""What a failed request to an object store means, and what to do about it."""

from __future__ import annotations

import os

from stratascope.errors import UnreachableError


class ObjectChangedError(Exception):
    """The object is another one than the caller knows."""


_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_CREDENTIALS = (
    "169.254.169.254",
    "metadata.google.internal",
    "MissingAccessKey",
    "Missing credentials",
    "MissingAccount",
)
_REFUSED = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "AuthenticationFailed",
    "403 Forbidden", "401 Unauthorized", "AuthFailure",
)  # fmt: skip
_REGION = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "301 Moved",
    "missing region",
    "IllegalLocationConstraint",
)
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}  # fmt: skip


def is_final(error: Exception) -> bool:
    """Whether asking again cannot help."""
    text = str(error)
    signs = (*_BUCKET, *_CREDENTIALS, *_REFUSED, *_REGION)
    return isinstance(error, NotImplementedError | PermissionError | TypeError) or any(
        sign in text for sign in signs
    )


def explained(url: str, kind: str, error: Exception) -> UnreachableError:
    """The error to show: the URL at fault, what the service said, and what to set."""
    text = str(error)
    scheme = url.split("://", 1)[0].lower()
    variables = _VARIABLES.get(scheme.rstrip("a") if scheme == "s3a" else scheme, "the service's credentials")
    bucket = url.split("://", 1)[-1].split("/", 1)[0]
    if any(sign in text for sign in _BUCKET):
        return UnreachableError(f"{url}: there is no bucket {bucket!r}{_at()}. Make it, or correct the URL.")
    if any(sign in text for sign in _CREDENTIALS):
        public = "; for a public bucket AWS_SKIP_SIGNATURE=true" if scheme in ("s3", "s3a") else ""
        return UnreachableError(f"{url}: there are no credentials. Set {variables} in the environment{public}.")
    if any(sign in text for sign in _REGION):
        region = os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        return UnreachableError(
            f"{url}: the bucket is not in the region {region!r}. Set AWS_REGION to the one that it is in."
        )
    if any(sign in text for sign in _REFUSED):
        return UnreachableError(
            f"{url}: access was refused ({_first(text)}). Check {variables}, and their rights."
        )
    return UnreachableError(
        f"{url} does not answer as it should{_at()}: {kind} failed with {_first(text) or type(error).__name__}. Check the network"
        f"{' and AWS_ENDPOINT_URL' if scheme in ('s3', 's3a') else ''}, then start again: what is stored is whole."
    )


def _at() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f" at {endpoint}" if endpoint else ""


def _first(text: str) -> str:
    lines = text.strip().splitlines()
    line = lines[0].split("<?xml")[0] if lines else ""
    return (line if len(line) < 220 else line[:220] + " …").rstrip(". :")
