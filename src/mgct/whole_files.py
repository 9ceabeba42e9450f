"""Saved parts of a model are loaded whole or not at all."""

from __future__ import annotations

from typing import Any

import torch

from mgct.errors import UserError, check_loaded


class LoadedWhole:
    """For diffusers models, named before `ModelMixin`: their file may lack nothing.

    diffusers itself draws a tensor that is missing at random, or leaves it at 0.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As in diffusers.

        Raises:
            UserError: tensors are missing or unexpected, or a buffer is not of finite numbers.
        """
        loading: Any = super()
        model, info = loading.from_pretrained(*args, **{**options, "output_loading_info": True})
        check_loaded(info)
        for name, value in model.named_buffers():
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"the saved {name} is not of finite numbers")
        return (model, info) if options.get("output_loading_info") else model
