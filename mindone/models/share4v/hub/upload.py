"""Upload of what `save_pretrained` writes to a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..display import redacted
from .errors import HubError
from .huggingface import endpoint


def upload(
    repo_id: str,
    write: Callable[[Path], Any],
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a directory to a repository, which is created if it does not exist; return the address of the commit.

    Args:
        repo_id: owner/name.
        write: called with an empty directory, to which it writes the files.
        private: whether a new repository is private; None leaves it to the owner's settings.
        token: access token; None uses HF_TOKEN or the stored one.
        commit_message: of the commit.

    Raises:
        HubError: the hub refused the upload, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint(), token=token)
    with TemporaryDirectory(prefix="share4v-upload-") as folder:
        write(Path(folder))
        try:
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=created.repo_id, folder_path=folder, commit_message=commit_message or "Upload with share4v"
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise HubError(
                f"{redacted(endpoint())}/{repo_id}: {redacted(str(error))}. Check the name, and that HF_TOKEN is a "
                "token that may write to it"
            ) from error
    return str(commit.commit_url)
