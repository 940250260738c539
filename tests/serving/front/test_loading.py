"""Loading of a served model, as every front does it."""

from __future__ import annotations

import logging

import pytest
from helpers.serving import Inbox, image
from ldp_runtime.bundle.files import Bundle
from ldp_serving.front.loading import ModelOptions, load_model
from ldp_serving.watch import Watch


@pytest.mark.parametrize("quotes", [False, True])
def test_no_log_quotes_a_prompt_unless_asked(
    small_bundle: Bundle, caplog: pytest.LogCaptureFixture, quotes: bool
) -> None:
    """In whatever process the model is: logs of replicas and of Triton's stubs are files of others."""
    options = ModelOptions(threads=1, previews=0, policy="none")
    with caplog.at_level(logging.DEBUG):
        model = load_model(small_bundle, options, Watch(), quote_prompts=quotes)
        try:
            inbox = Inbox()
            model.scheduler.submit([image(model.pipeline, prompt="blue xyzzy")], inbox)
            inbox.ends()
        finally:
            model.scheduler.close()
            model.pipeline.close()
    assert ("xyzzy" in caplog.text) is quotes
