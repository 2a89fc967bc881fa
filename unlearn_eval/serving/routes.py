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

from unlearn_eval.edits.folder import read_description
from unlearn_eval.serving.plugin import edit_id
from unlearn_eval.serving.swapping import EngineFacts, check_swap, facts_of
from unlearn_eval.utils.errors import UserError

NAME = "unlearn_eval_routes"


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
        self._facts: EngineFacts = facts_of(engine.vllm_config, folder)
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
            UserError: the folder is no edit of the same base that this engine could serve; the old one is served on.
            Exception: the engine could not read it; the old one is read again.
        """
        async with self._one:
            facts = check_swap(self.folder, folder, self._facts)
            await self._engine.pause_generation(mode="wait", clear_cache=True)
            try:
                await self._read(folder)
                self._facts = facts
            finally:
                if self.whole:
                    await self._engine.resume_generation()  # else no request is answered until a swap works

    async def _read(self, folder: Path) -> None:
        """Bring the edit into the engine, which runs nothing; or leave, or bring back, the one that was there."""
        before, description = self.folder, describe(folder)
        was_whole = self.whole
        memories = self.description["kind"] == description["kind"] == "memory"
        reload = not (was_whole and memories)  # else all weights are the base's
        self.whole = False
        try:
            refused = await self._tell(folder, reload)
        except Exception:
            if reload:  # else nothing has changed
                await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(before)})
            self.whole = True
            raise
        if refused:  # before anything has changed
            self.whole = was_whole
            raise UserError(refused["message"], refused["hint"])
        self.whole = True
        self.folder, self.description = folder, description
        await self._engine.reset_prefix_cache()

    async def _tell(self, folder: Path, reload: bool) -> dict[str, str] | None:
        """Why the engine does not take the edit, if it does not."""
        if self._facts.module is None:  # started with an edit of weights, and so serves only such
            await self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            return None
        options = {"folder": str(folder), "reload": reload}
        found = await self._engine.collective_rpc("unlearn_eval_serve", kwargs=options)
        return next((refusal for refusal in found if refusal), None)


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
