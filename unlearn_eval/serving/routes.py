"""What an edit's server answers beside OpenAI's routes: which edit it serves, and another one without a restart.

    GET  /health     {"status": "ok", "edit": {...}}; 503 while no edit is whole in the engine
    GET  /v1/edit    the same description of the edit
    POST /v1/edit    {"edit": "DIR"}: serve that edit of the same base from now on

vLLM's entry point `vllm.endpoint_plugins`; it is loaded only where it is named in VLLM_PLUGINS, as `unlearn-eval serve`
does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from unlearn_eval.edits import read_description
from unlearn_eval.errors import UserError
from unlearn_eval.serving.plugin import edit_id

NAME = "unlearn_eval_routes"
WEIGHTS = ("low_rank", "dense")


class EditRoutes:
    """The routes, as vLLM asks for them."""

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes; /health takes the place of vLLM's own."""
        from fastapi import Body
        from fastapi.responses import JSONResponse

        async def health() -> Any:
            served: Served | None = getattr(app.state, NAME, None)
            if served is None or not await served.is_well():
                return JSONResponse({"status": "not serving"}, 503)
            return {"status": "ok", "edit": served.description}

        async def show() -> Any:
            return getattr(app.state, NAME).description

        async def swap(edit: str = Body(embed=True)) -> Any:
            served: Served = getattr(app.state, NAME)
            try:
                await served.swap(Path(edit))
            except UserError as error:
                return JSONResponse({"error": {"message": error.message, "hint": error.hint}}, 400)
            except Exception as error:  # the engine's own; the edit that was served is back, or /health says it is not
                return JSONResponse({"error": {"message": f"{type(error).__name__}: {error}"}}, 500)
            return served.description

        app.add_api_route("/health", health, methods=["GET"])
        app.add_api_route("/v1/edit", show, methods=["GET"])
        app.add_api_route("/v1/edit", swap, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remember the engine and the folder that it serves."""
        setattr(state, NAME, Served(engine_client, Path(args.model)))


class Served:
    """The edit in an engine.

    Attributes:
        folder: of the edit.
        description: of it, for people and programs.
        whole: whether it is in the engine, and nothing else.
    """

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine, self._one = engine, asyncio.Lock()
        self.folder, self.description, self.whole = folder, describe(folder), True

    async def is_well(self) -> bool:
        """Whether the engine answers with an edit that is whole."""
        try:
            await self._engine.check_health()
        except Exception:
            return False
        return self.whole

    async def swap(self, folder: Path) -> None:
        """Serve another edit: running requests end first, and what was cached of the old one goes.

        Raises:
            UserError: the folder is no edit of the same base that changes weights; the old one is served on.
            Exception: the engine could not read it; the old one is read again.
        """
        check_swap(self.folder, folder)
        async with self._one:
            await self._engine.pause_generation(mode="wait", clear_cache=True)
            try:
                await self._read(folder)
            finally:
                if self.whole:
                    await self._engine.resume_generation()  # else no request is answered until a swap works

    async def _read(self, folder: Path) -> None:
        before, self.whole = self.folder, False
        try:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        except Exception:
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(before)})
            self.whole = True
            raise
        self.folder, self.description, self.whole = folder, describe(folder), True
        await self._engine.reset_prefix_cache()


def describe(folder: Path) -> dict[str, Any]:
    """An edit's id, method, base and what was asked for."""
    found = read_description(folder)
    info = found["info"]
    return {
        "id": edit_id(folder),
        "kind": found["kind"],
        "editor": info["editor"],
        "base": {key: info["base"].get(key) for key in ("id", "canonical_hash")},
        "requests": info["requests"].get("n"),
    }


def check_swap(served: Path, wanted: Path) -> None:
    """Refuse an edit that cannot take the place of another.

    Raises:
        UserError: with the reason.
    """
    old, new = read_description(served), read_description(wanted)
    for folder, found in ((served, old), (wanted, new)):
        if found["kind"] not in WEIGHTS:
            raise UserError(
                f"{folder} is a memory edit, which is built into the engine",
                "start a server for it: unlearn-eval serve",
            )
    own, other = (found["info"]["base"].get("canonical_hash") for found in (old, new))
    if own != other:
        raise UserError(
            f"{wanted} was made on {new['info']['base'].get('id')} (weights {str(other)[:12]}), and this server's base "
            f"has other weights ({str(own)[:12]})",
            "start a server for it: unlearn-eval serve",
        )
