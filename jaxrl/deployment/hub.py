"""Upload to the Hugging Face hub; needs the extra `hub`."""

import re
from pathlib import Path
from typing import Any

from jaxrl.errors import InvalidInput, install_command, require


def check(repo: str) -> None:
    """Raise `InvalidInput` for a malformed name or a missing package."""
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    require(
        re.fullmatch(f"{part}/{part}", repo) is not None,
        f"push_to_hub = {repo!r}: must be the name of a repository, 'name/model'.",
    )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            f"push_to_hub = {repo!r}: needs huggingface_hub: {install_command('hub')}."
        ) from error


def push(files: dict[Path, str], repo: str, api: Any = None) -> str:
    """Push files as one commit of a model repository, which is created if needed.

    Args:
      files: local path -> name in the repository.
      repo: "name/model".
      api: a `huggingface_hub.HfApi`; by default one that takes the token of
        `hf auth login` or of `$HF_TOKEN`.

    Returns:
      The address of the commit.

    Raises:
      InvalidInput: the hub cannot be reached, or refuses.
    """
    check(repo)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = api or HfApi()
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path))
        for path, name in files.items()
    ]
    message = "A policy exported with jaxrl"
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        paths = ", ".join(map(str, files))
        raise InvalidInput(
            f"push_to_hub = {repo!r}: the upload failed ({reason}); the files are "
            f"written, {paths}."
        ) from error
    return str(commit.commit_url)
