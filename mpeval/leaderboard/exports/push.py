"""Results into the model card of a repository of the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpeval.errors import DataError, MpevalError, OutputError, UsageError
from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.exports.card import merged
from mpeval.leaderboard.exports.hub import model_index

CARD = "README.md"
BRANCH = "main"


def push(content: Sequence[Board], repo: str, *, endpoint: str | None = None) -> str:
    """Merge all rows of `content` into the model card of a repository; return the address of the commit.

    The hub is given the card as it was merged here: its library's own merging puts results of different arguments or
    sources together.  A commit that somebody else made meanwhile is not overwritten.

    Args:
        content: boards of the repository's models.
        repo: `OWNER/NAME`.
        endpoint: address of the hub, if not the usual one.

    Returns:
        The commit's address, empty if the card had everything already.

    Raises:
        UsageError: no name of a repository.
        DataError: no such repository, or a card that cannot be read.
        OutputError: the hub cannot be reached, or refuses the card.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=endpoint)
    # what the library's transport raises; which transport that is depends on its version
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        card, commit = _card(api, repo)
        new = merged(card, model_index(content))
        if new == card:
            return ""
        said = "Results by mpeval"
        done = api.upload_file(
            path_or_fileobj=new.encode(),
            path_in_repo=CARD,
            repo_id=repo,
            revision=BRANCH,
            parent_commit=commit,
            commit_message=said,
        )
    except HFValidationError as error:
        raise UsageError(f"`{repo}` is no name of a repository", "give OWNER/NAME by `--push-to-hub`") from error
    except (transport, OSError, ValueError) as error:
        raise _failed(repo, error) from error
    return str(done.commit_url)


def _card(api: Any, repo: str) -> tuple[str, str | None]:
    """Return a repository's model card and the commit it is of; empty text and None if it has no card yet."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(api.hf_hub_download(repo, CARD, revision=BRANCH, cache_dir=folder))
        except RemoteEntryNotFoundError:
            return "", None
        except LocalEntryNotFoundError as error:
            raise OutputError(
                f"the hub at `{api.endpoint}` cannot be reached", "look at the network, then try again"
            ) from error
        return path.read_bytes().decode("utf-8-sig"), path.parent.name


def _failed(repo: str, error: Exception) -> MpevalError:
    """Say what the hub would not do."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return DataError(
            f"the hub has no model `{repo}`, or shows it to nobody without a token", "make it, or `hf auth login`"
        )
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return OutputError(
        f"the hub did not take the model card of `{repo}`: {reason}", "`hf auth login` with a token that may write"
    )
