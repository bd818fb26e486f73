"""`share4v review`: serve the page that reviews a job's captions, until a signal ends it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import PurePath

from ..printing import one_line, print_error
from .common import usage_error
from .exit_status import DONE, SOME_FAILED, USAGE_ERROR
from .serve import leave, loader, network_options

IMAGE_CACHE_BYTES = 2**28


def run(arguments: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit status."""
    try:
        from mindone.pipelines.image_to_text.serve import server
    except ImportError as error:
        print_error(f"error: the page needs {error.name}: install it with pip install 'mindone-share4v[serve]'")
        return USAGE_ERROR
    from mindone.pipelines.image_to_text.dataset.state.records import JobError
    from mindone.pipelines.image_to_text.serve.options import ServerOptions
    from mindone.pipelines.image_to_text.serve.review_routes import Review

    model = arguments.model
    try:
        options = ServerOptions(model_name=PurePath(model or "none").name, **network_options(arguments))
        listener = server.bind(options)
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    try:
        review = Review(arguments.out, options, has_model=model is not None)
    except (ValueError, OSError, JobError) as error:
        listener.close()
        return usage_error(arguments, error)
    address = server.address_of(listener)
    print_error(f"reviewing {one_line(str(review.state))} at {address}")
    failed, has_ended = False, True
    try:
        has_ended = server.run(
            options,
            None if model is None else loader(arguments),
            listener,
            IMAGE_CACHE_BYTES,
            lambda: print_error("ready"),
            None,
            review.routes(),
        )
    except server.ModelFailedError as error:
        print_error(f"error: the model failed: {error}")
        failed = True
    finally:
        problem = review.close()
    if problem is not None:
        failed = failed or problem.is_failure
        print_error(
            f"{'error' if problem.is_failure else 'warning'}: {one_line(problem.text)}; your changes are stored"
        )
    print_error("ended")
    return leave(SOME_FAILED if failed else DONE, has_ended)
