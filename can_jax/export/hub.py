"""Upload of an export to the Hugging Face Hub."""

import importlib.util
import re

from etils import epath

from can_jax.utils.errors import UserError, one_line


class Repository:
    """A model repository on the Hugging Face Hub.

    Args:
        url: The address of the repository, ``hf://user/name``.

    Raises:
        UserError: The address is malformed, `huggingface_hub` is not installed, or the user is not
            logged in to the Hub.
    """

    def __init__(self, url: str):
        match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", url)
        if match is None:
            raise UserError(f"--push={url} is not of the form hf://user/name")
        if importlib.util.find_spec("huggingface_hub") is None:
            raise UserError(f"--push={url} requires huggingface_hub: pip install huggingface_hub")
        from huggingface_hub import HfApi

        self._name, self._url, self._api = match[1], url, HfApi()
        try:
            self._api.whoami()
        except Exception as error:  # The library raises many types of exception.
            raise UserError(
                f"--push={url}: not logged in to the Hugging Face Hub ({one_line(error)[:200]}); "
                "run `hf auth login`, or set HF_TOKEN"
            ) from error

    def upload(self, folder: epath.Path) -> None:
        """Create the repository if it is missing, and upload a folder as one commit.

        Raises:
            UserError: The upload failed. The local folder is complete and is not removed.
        """
        try:
            self._api.create_repo(self._name, exist_ok=True)
            self._api.upload_folder(repo_id=self._name, folder_path=str(folder))
        except Exception as error:
            raise UserError(
                f"--push={self._url}: {folder} is complete, but was not uploaded: "
                f"{one_line(error)[:300]}; run `hf upload {self._name} {folder}`"
            ) from error
