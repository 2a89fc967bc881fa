"""What an edit's server answers beside OpenAI's routes: which edit it serves, and another one without a restart.

    GET  /health     {"status": "ok", "edit": {...}}; 503 while no edit is whole in the engine; without the key no edit
    GET  /v1/edit    the same description of the edit
    POST /v1/edit    {"edit": "DIR"}: serve that edit of the same base from now on; it must be below the edits' root

Before any of these, and before vLLM's own, stands `gate.Gate`. vLLM's entry point `vllm.endpoint_plugins`; it is
loaded only where it is named in VLLM_PLUGINS, as `unlearn-eval serve` does.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn_eval.edits.folder import read_description
from unlearn_eval.edits.places import is_edit
from unlearn_eval.serving.door import rules_of
from unlearn_eval.serving.gate import KNOWN, NAME, Gate
from unlearn_eval.serving.plugin import edit_id
from unlearn_eval.serving.swapping import EngineFacts, check_swap, facts_of
from unlearn_eval.utils.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.engine.protocol import EngineClient

ROOT = "UNLEARN_EVAL_EDITS_ROOT"  # in the environment: the folder below which edits are served
_LONGEST = 1024  # characters of a folder's name


class EditRoutes:
    """The routes, as vLLM asks for them."""

    name = NAME
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; /health takes the place of vLLM's own."""
        from fastapi import Body, Request
        from fastapi.responses import JSONResponse
        from vllm import envs

        args = app.state.args
        keys = args.api_key or [envs.VLLM_API_KEY or ""]
        keys = [keys] if isinstance(keys, str) else keys
        host = "localhost" if args.uds else args.host
        Gate(app, keys, host)  # which refuses now, and not with the first request
        app.add_middleware(Gate, keys=keys, host=host, origins=args.allowed_origins)

        async def health(request: Request) -> Any:
            served: Served | None = getattr(app.state, NAME, None)
            if served is None or not await served.is_well():
                return JSONResponse({"status": "not serving"}, 503)
            known = request.scope.get(KNOWN, False)
            return {"status": "ok"} | ({"edit": served.description} if known else {})

        async def show() -> Any:
            return getattr(app.state, NAME).description

        async def swap(edit: str = Body(embed=True)) -> Any:
            served: Served = getattr(app.state, NAME)
            try:
                await served.swap(inside(served.root, edit))
            except UserError as error:
                return JSONResponse({"error": {"message": error.message, "hint": error.hint}}, 400)
            except Exception as error:  # the engine's own; the edit that was served is back, or /health says it is not
                return JSONResponse({"error": {"message": f"{type(error).__name__}: {error}"}}, 500)
            return served.description

        health.__annotations__["request"] = Request  # a name of this function's, which FastAPI cannot look up
        app.add_api_route("/health", health, methods=["GET"])
        app.add_api_route("/v1/edit", show, methods=["GET"])
        app.add_api_route("/v1/edit", swap, methods=["POST"])

    async def init_state(self, engine_client: EngineClient, state: Any, args: Any) -> None:
        """Remember the engine and the folder that it serves.

        Raises:
            UserError: the engine lets requests say where their prompts end.
        """
        rules = rules_of(engine_client.vllm_config)
        if rules is not None and rules.scoring:
            raise UserError(
                "an engine that was started to score lets each request switch a memory off, and is no server's",
                "leave out --additional-config",
            )
        root = os.environ.get(ROOT)
        setattr(state, NAME, Served(engine_client, Path(args.model), Path(root) if root else None))


class Served:
    """The edit in an engine.

    Attributes:
        folder: of the edit.
        description: of it, for people and programs.
        whole: whether it is in the engine, and nothing else.
        root: the folder below which others are; by default the one in which this edit is.
    """

    def __init__(self, engine: EngineClient, folder: Path, root: Path | None = None) -> None:
        self._engine, self._one = engine, asyncio.Lock()
        self._facts: EngineFacts = facts_of(engine.vllm_config, folder)
        self.folder, self.description, self.whole = folder, describe(folder), True
        self.root = (root or folder.resolve().parent).resolve()

    @property
    def has_memories(self) -> bool:
        """Whether a memory edit is in the engine, or may come into it while a request waits."""
        return self._facts.module is not None

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


def inside(root: Path, name: str) -> Path:
    """The folder of an edit below a root.

    Raises:
        UserError: there is none; of what is elsewhere nothing is said, not even whether it exists.
    """
    refused = UserError("there is no such edit below the server's edits root", "name a folder below it (--edits-root)")
    if not name or len(name) > _LONGEST or "\0" in name:
        raise refused
    try:
        found = (root / name).resolve()  # of links too, where they lead
        known = found != root and found.is_relative_to(root) and is_edit(found)
    except (OSError, RuntimeError):  # too long for the file system; links in a circle
        raise refused from None
    if not known:
        raise refused
    return found


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
