"""What the doctor gathers, and what it says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from genqueue.acl import PermissionCheck
from genqueue.registry.fleet import Overview

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``what``, what was ``seen``, and what to ``do``, "" if nothing."""

    level: Level
    what: str
    seen: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class FileSeen:
    """The settings file, and who may change or read it.

    Attributes:
        path: as it was named.
        mode: of the file, as ``stat`` has it; ``folder_mode`` of its folder.
        owner: user id; ``folder_owner`` the folder's.
        group_is_owners: whether nobody else is in its group; ``folder_group_is_owners`` in the folder's.
        is_read_only: whether nobody can write where it lies: a mounted secret of Kubernetes, for one.
        holds_secrets: whether there is a password or a header's value in it.
        us: the user id of this process.
    """

    path: str
    mode: int
    owner: int
    group_is_owners: bool
    folder_mode: int
    folder_owner: int
    folder_group_is_owners: bool
    is_read_only: bool
    holds_secrets: bool
    us: int


@dataclass(frozen=True, slots=True)
class EndpointSeen:
    """A model server as this host sees it.

    Attributes:
        generator: whose.
        address: without user, password and query.
        trouble: why there is no connection; "" if there is one.
        status: of its answer to ``/health``; None if what came was no HTTP, or nothing.
        is_asked: whether it was asked for that.
        is_behind_proxy: whether it was left alone, since a worker reaches it by way of a proxy.
    """

    generator: str
    address: str
    trouble: str = ""
    status: int | None = None
    is_asked: bool = True
    is_behind_proxy: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What was gathered; None where Redis did not let us see it.

    Attributes:
        hello: server, version, mode and role, as HELLO says; None where it is no command.
        info: the fields of INFO; None if refused.
        save: the snapshot rules of ``CONFIG GET save``; None if refused.
        refused: the permission checks that Redis refused for lack of rights; None if trying itself was refused.
        clock_ahead_s: this host's clock less Redis's, true to ``clock_bound_s``; None if refused.
        overview: queues and workers; None if refused, and ``overview_error`` says why.
        endpoints: the model servers of the settings.
        missing_tokens: for each generator the variables of its token, none of which is set.
        broken_tokens: for each generator the variable of a token that no request can carry.
        noted: commands whose refusal Redis has written into its ACL log because this was looked at.
    """

    hello: Mapping[str, str] | None
    info: Mapping[str, str] | None
    save: str | None
    refused: Sequence[PermissionCheck] | None
    clock_ahead_s: float | None
    clock_bound_s: float
    overview: Overview | None
    overview_error: str = ""
    endpoints: Sequence[EndpointSeen] = ()
    missing_tokens: Mapping[str, Sequence[str]] = field(default_factory=dict)
    broken_tokens: Mapping[str, str] = field(default_factory=dict)
    noted: Sequence[str] = ()

    @property
    def version(self) -> str:
        """Redis's, as it says itself; "" if it does not."""
        return (self.hello or {}).get("version") or (self.info or {}).get("redis_version", "")
