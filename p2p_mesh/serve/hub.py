"""Published packages, on huggingface.co or wherever HF_ENDPOINT says: what a name means there, and
files of it, through the huggingface_hub library, its cache and its resumption.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2p_mesh.core.reference import HubName
from p2p_mesh.errors import ModelError, Unavailable

ENDPOINT = "HF_ENDPOINT"
TRIES = 3
"""Of one file, each of which the library itself repeats."""

Progress = Callable[[float], None]


class _Cut(Unavailable):
    """A connection broke in the middle of a file: the next try may end well."""


class Hub:
    """The library is imported when it is first used: that takes longer than most commands."""

    def __init__(self, cache: Path | None = None) -> None:
        """`cache`: where files are kept; None: where the library keeps them ($HF_HOME)."""
        self._cache = cache

    async def resolve(self, name: HubName) -> HubName:
        """The commit that a name means now; without a connection, the last one that it meant.
        Raises ModelError where there is none, Unavailable.
        """
        return await trio.to_thread.run_sync(self.look_up, name, abandon_on_cancel=True)

    async def download(
        self,
        name: HubName,
        path: str,
        *,
        size: int | None = None,
        progress: Progress = lambda _: None,
    ) -> Path:
        """A file of a repository, in the cache. What was cut is resumed. Nothing of one that has
        not `size` bytes is downloaded. Raises ModelError where there is none, Unavailable.
        """

        def report(done: float) -> None:
            trio.from_thread.run_sync(progress, done)  # ends the thread where nobody waits for it

        return await trio.to_thread.run_sync(
            partial(self.get, name, path, report, size=size), abandon_on_cancel=True
        )

    def look_up(self, name: HubName) -> HubName:
        """As `resolve`, in this thread."""
        if name.is_fixed:
            return name
        from huggingface_hub import HfApi

        try:
            with _in_words(name, ""):
                api = HfApi(endpoint=os.environ.get(ENDPOINT))
                commit = api.model_info(name.repo, revision=name.revision, timeout=20).sha
        except Unavailable:
            if (known := self._known(name)) is None:
                raise
            commit = known
        return _fixed(HubName(name.repo, commit or ""))

    def get(
        self,
        name: HubName,
        path: str,
        progress: Progress = lambda _: None,
        *,
        size: int | None = None,
    ) -> Path:
        """As `download`, in this thread."""
        for _ in range(TRIES - 1):
            with suppress(_Cut):
                return self._get(name, path, progress, size)
        return self._get(name, path, progress, size)

    def _size(self, name: HubName, path: str) -> int | None:
        """Of what is in the cache, or the hub has; None: it does not say."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(
            name.repo, path, cache_dir=self._cache, revision=name.revision
        )
        if isinstance(cached, str):
            return os.path.getsize(cached)
        endpoint = os.environ.get(ENDPOINT)
        url = hf_hub_url(name.repo, path, revision=name.revision, endpoint=endpoint)
        return get_hf_file_metadata(url, library_name="meshnode", endpoint=endpoint).size

    def _get(self, name: HubName, path: str, progress: Progress, size: int | None) -> Path:
        from huggingface_hub import hf_hub_download

        with _in_words(name, path):
            if size is not None and (found := self._size(name, path)) != size:
                raise ModelError(f"{path} of {name} has {found} bytes, and {size} would be right")
            return Path(hf_hub_download(
                name.repo, path, revision=name.revision, cache_dir=self._cache,
                endpoint=os.environ.get(ENDPOINT), tqdm_class=_bar(progress),
                library_name="meshnode",
            ))  # fmt: skip

    def _known(self, name: HubName) -> str | None:
        """The commit that the library's cache remembers for a revision."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(self._cache or constants.HF_HUB_CACHE)
        folder = folder / repo_folder_name(repo_id=name.repo, repo_type="model")
        try:
            return (folder / "refs" / name.revision).read_text().strip()
        except OSError:
            return None


def _fixed(name: HubName) -> HubName:
    if not name.is_fixed:
        raise Unavailable(f"the hub answers {name.revision[:64]!r} for the commit of {name.repo}")
    return name


@contextmanager
def _in_words(name: HubName, path: str) -> Iterator[None]:
    """The library's errors as ours."""
    import httpx
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    # It says on standard error what is said here, or mended.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    what = f"{path} of {name}" if path else str(name)
    try:
        yield
    except errors.GatedRepoError:
        raise ModelError(
            f"{name.repo} is for those who asked for it: ask on its page, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name.repo} has no revision {name.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"there is no {name.repo}, or it is private: then log in with `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise Unavailable(f"{what} cannot be reached: {_reason(error)}") from None
    except errors.EntryNotFoundError:
        raise ModelError(f"{name} has no file {path!r}") from None
    except errors.HFValidationError as error:
        raise ModelError(f"{name} is no name of a repository: {error}") from None
    except errors.HfHubHTTPError as error:
        raise _by_status(error, what) from None
    except (httpx.HTTPError, OSError) as error:
        raise _Cut(f"{what} cannot be reached: {_reason(error)}") from None
    except ValueError as error:
        raise Unavailable(f"{what} cannot be fetched: {_reason(error)}") from None


def _by_status(error: Any, what: str) -> ModelError | Unavailable:
    status = error.response.status_code
    if status in (401, 403):
        return ModelError(f"the hub gives {what} to nobody unknown: log in with `hf auth login`")
    if status == 404:
        return ModelError(f"there is no {what}")
    return Unavailable(f"the hub answers {status} for {what}")


def _reason(error: BaseException) -> str:
    return (str(error.__cause__ or error) or type(error).__name__).splitlines()[0][:200]


def _bar(progress: Progress) -> type[Any]:
    """What the library believes to be a progress bar."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": True})  # type: ignore[no-untyped-call]
            self.got = more.get("initial") or 0
            self.whole = more.get("total") or 0

        def update(self, n: float | None = 1) -> bool | None:
            self.got += n or 0
            progress(min(1.0, self.got / self.whole) if self.whole else 0.0)
            return None

    return Bar
