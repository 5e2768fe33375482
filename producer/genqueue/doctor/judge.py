"""What is wrong, out of what was gathered, and what to do about it.

Pure: :mod:`genqueue.doctor.gather` gathers the facts.  No finding shows a password, a token, or an
address with one.
"""

import stat
from collections.abc import Mapping, Sequence
from typing import Any

from genqueue.acl import Role
from genqueue.doctor.facts import EndpointSeen, Facts, FileSeen, Finding, Level
from genqueue.durations import duration
from genqueue.registry.fleet import Overview, QueueStatus, WorkerStatus
from genqueue.settings import Settings

OLDEST_REDIS = (6, 2)
FIRST_WITH_SELECTORS = (7, 0)
"""Before that a rule for some keys is one for all that its user may say."""
SKEW_LIMIT_S = 1.0
"""Timings of a result mix the clocks of hosts and Redis; leases and deadlines are Redis's alone."""
STUCK_S = 30.0
"""After so long a waiting generation without a doorbell should have been rung for ten times."""
NEARLY_FULL = 0.8
_LASTING = "and the same in redis.conf (CONFIG REWRITE), or it ends with the process"


def judge(settings: Settings, role: Role, facts: Facts, user: str) -> list[Finding]:
    """Every finding, in the order in which to read them."""
    findings = [
        *_server(facts),
        *_rights(role, facts, user),
        *_noted(facts, user),
        *_clock(facts),
        *(
            Finding(
                "fail", f"token of {name!r}", "no variable holds it", f"set {' or '.join(variables)} for the worker"
            )
            for name, variables in facts.missing_tokens.items()
        ),
        *(
            Finding(
                "fail",
                f"token of {name!r}",
                f"{variable} holds a character that cannot stand in a header",
                "set it to the token alone; a worker does not start with it",
            )
            for name, variable in facts.broken_tokens.items()
        ),
        *map(_endpoint, facts.endpoints),
    ]
    if facts.overview is None:
        if role == "flower":
            return findings  # it neither may nor needs to see them
        return [*findings, Finding("fail", "queues and workers", facts.overview_error, "see the findings above")]
    return [*findings, *_queues(facts.overview), *_workers(facts.overview), *_agreement(settings, facts.overview)]


def judge_file(seen: FileSeen) -> list[Finding]:
    """Whether somebody else can change the settings file, and send the workers' tokens and prompts where they like."""
    what = f"settings file {seen.path}"
    findings = []
    others = stat.S_IWOTH | (0 if seen.group_is_owners else stat.S_IWGRP)
    mode = f"mode {stat.S_IMODE(seen.mode):04o}"
    if seen.owner not in {0, seen.us}:
        do = f"have it belong to root or to this user: it says where the workers' tokens are sent (chown {seen.us})"
        findings.append(Finding("warn", what, f"belongs to user {seen.owner}", do))
    if seen.mode & others and not seen.is_read_only:
        do = f"chmod go-w {seen.path}: it says where the workers' tokens are sent"
        findings.append(Finding("warn", what, f"others may write it ({mode})", do))
    others = stat.S_IWOTH | (0 if seen.folder_group_is_owners else stat.S_IWGRP)
    may_replace = seen.folder_mode & others and not seen.folder_mode & stat.S_ISVTX
    if (may_replace or seen.folder_owner not in {0, seen.us}) and not seen.is_read_only:
        do = "move it, or chmod go-w its folder: it says where the workers' tokens are sent"
        findings.append(Finding("warn", what, "others may put another in its place: they may write its folder", do))
    others = stat.S_IROTH | (0 if seen.group_is_owners else stat.S_IRGRP)
    if seen.holds_secrets and seen.mode & others:
        do = f"chmod go-r {seen.path}: it holds a password or a header's value"
        findings.append(Finding("warn", what, f"others may read it ({mode})", do))
    return findings


def has_failed(findings: Sequence[Finding]) -> bool:
    """Whether something has to be mended."""
    return any(finding.level == "fail" for finding in findings)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _hidden(what: str, commands: str) -> Finding:
    do = f"run this once as genqueue-operator, who may say {commands} (docs/deploy.md), or ask who runs Redis"
    return Finding("warn", what, "not allowed to see", do)


def _server(facts: Facts) -> list[Finding]:
    findings = []
    hello = facts.hello or {}
    version = facts.version
    numbers = _numbers(version)
    name = f"{hello.get('server', 'redis')} {version or 'of no known version'}"
    if numbers >= OLDEST_REDIS:
        findings.append(Finding("ok", "version", name))
    elif facts.hello is None and not version:
        findings.append(
            Finding("fail", "version", name, "Redis before 6 has no HELLO: use 6.2 or newer, and leave it its name")
        )
    else:
        findings.append(Finding("fail", "version", name, "use Redis 6.2 or newer, or Valkey"))
    if hello.get("mode") == "cluster":
        do = "use a Redis without cluster mode: one for each group of generators (docs/deploy.md)"
        findings.append(Finding("fail", "mode", "cluster", do))
    if hello.get("role", "master") != "master":
        findings.append(
            Finding("fail", "role", hello["role"], "name the master in redis_url, or its Sentinels (docs/deploy.md)")
        )
    if facts.info is None:
        return [*findings, _hidden("eviction, memory, persistence", "INFO")]
    return [*findings, *_memory(facts.info), *_persistence(facts.info, facts.save)]


def _memory(info: Mapping[str, str]) -> list[Finding]:
    findings = []
    policy = info.get("maxmemory_policy")
    if policy is None:
        findings.append(_hidden("eviction", "INFO memory"))
    elif policy == "noeviction":
        findings.append(Finding("ok", "eviction", policy))
    else:
        do = f"CONFIG SET maxmemory-policy noeviction, {_LASTING}: every other throws accepted generations away"
        findings.append(Finding("fail", "eviction", policy, do))
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    seen = f"{used / 1e6:.0f} MB used" + (f" of {most / 1e6:.0f} MB" if most else ", no limit")
    if most and used >= most:
        findings.append(Finding("fail", "memory", seen, "raise maxmemory, or lower log_ttl_s and result_ttl_s"))
    elif most and used >= NEARLY_FULL * most:
        findings.append(Finding("warn", "memory", seen, "raise maxmemory, or lower log_ttl_s and result_ttl_s"))
    elif most:
        findings.append(Finding("ok", "memory", seen))
    else:
        findings.append(
            Finding(
                "warn",
                "memory",
                seen,
                "set maxmemory in redis.conf: at a limit Redis refuses, without one it is killed",
            )
        )
    return findings


def _persistence(info: Mapping[str, str], save: str | None) -> list[Finding]:
    findings = []
    if info.get("aof_enabled") is None:
        findings.append(_hidden("persistence", "INFO persistence"))
    elif info["aof_enabled"] == "1":
        findings.append(Finding("ok", "persistence", "appendonly yes"))
    elif save is None:
        findings.append(_hidden("persistence (appendonly no; snapshots?)", "CONFIG GET save"))
    elif save:
        seen = f"appendonly no, snapshots {save!r}"
        findings.append(
            Finding(
                "warn",
                "persistence",
                seen,
                f"CONFIG SET appendonly yes, {_LASTING}: a crash loses what no snapshot has",
            )
        )
    else:
        findings.append(
            Finding(
                "fail",
                "persistence",
                "appendonly no, no snapshots",
                f"CONFIG SET appendonly yes, {_LASTING}: a restart loses all",
            )
        )
    for name, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "last snapshot")):
        if info.get(name, "ok") != "ok":
            findings.append(Finding("fail", what, info[name], "look into Redis's log: its disk may be full"))
    return findings


def _rights(role: Role, facts: Facts, user: str) -> list[Finding]:
    what = f"rights of {'an' if role == 'operator' else 'a'} {role}"
    if facts.refused is None:
        do = f"ACL SETUSER {user} +multi +exec +discard: Celery needs them too"
        return [Finding("fail", what, f"{user} may not say MULTI", do)]
    if not facts.refused:
        return [Finding("ok", what, f"{user} has every right that it needs")]
    by_command: dict[str, list[str]] = {}
    for check in facts.refused:
        by_command.setdefault(check.right, []).append(check.on)
    has_selectors = _numbers(facts.version) >= FIRST_WITH_SELECTORS
    return [
        _lacking(what, user, right, [on for on in patterns if on], has_selectors=has_selectors)
        for right, patterns in by_command.items()
    ]


def _lacking(what: str, user: str, right: str, on: Sequence[str], *, has_selectors: bool) -> Finding:
    where = f" on {' '.join(one[1:] for one in on)}" if on else ""
    words = [f"+{right}", *on]
    has_keys = any(one.startswith("~") for one in on)
    # In quotes for a shell; keys need a selector of their own, or the user's other commands would have them too.
    rule = f"'({' '.join(words)})'" if has_keys and has_selectors else " ".join(f"'{one}'" for one in words)
    note = "ops/redis/users.acl has all of them"
    if not has_selectors:
        note = "ops/redis/users.acl needs Redis 7"
        if has_keys:
            note = f"all else that {user} may say then reaches these keys too; {note}, which tells them apart"
    return Finding(
        "fail",
        what,
        f"{user} may not say {right.upper().replace('|', ' ')}{where}",
        f"ACL SETUSER {user} {rule} ({note})",
    )


def _noted(facts: Facts, user: str) -> list[Finding]:
    if not facts.noted:
        return []
    seen = f"has lines of {user!r} for {', '.join(facts.noted)}: before Redis 7 nobody can ask without them"
    return [Finding("ok", "ACL log", seen)]


def _clock(facts: Facts) -> list[Finding]:
    ahead = facts.clock_ahead_s
    if ahead is None:
        return []  # the rights say so
    seen = (
        f"this host is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} Redis (±{facts.clock_bound_s:.3f} s)"
    )
    if abs(ahead) - facts.clock_bound_s <= SKEW_LIMIT_S:
        return [Finding("ok", "clock", seen)]
    do = "have chrony or systemd-timesyncd set both clocks: timings are off by as much"
    return [Finding("warn", "clock", seen, do)]


def _endpoint(seen: EndpointSeen) -> Finding:
    what, status = f"endpoint {seen.address} of {seen.generator!r}", seen.status
    if seen.is_behind_proxy:
        do = "genqueue status --workers says how a worker finds it; NO_PROXY names what is called without a proxy"
        return Finding("warn", what, "not asked: HTTP_PROXY, HTTPS_PROXY or ALL_PROXY has a worker use a proxy", do)
    if seen.trouble:
        return Finding("fail", what, f"not reached from here: {seen.trouble}", "start it, or mend its address")
    if not seen.is_asked:
        return Finding("ok", what, "connected, and not asked for /health, which could wake it at a cost")
    if status is None:
        return Finding(
            "fail", what, "no HTTP answer to /health", "mend its address: what listens there is no model server"
        )
    words = f"answers /health with {status}"
    if status >= 500:
        return Finding("fail", what, words, "look into its log: its model is still loading, or cannot answer")
    if status in {401, 403}:
        return Finding("warn", what, words, "see that the worker has its token: token_env, or api_params.headers")
    if status >= 400:
        return Finding(
            "warn", what, words, "is that address a Text Generation Inference's? workers will call it all the same"
        )
    if status >= 300:
        return Finding("fail", what, words, "name the address to which it leads: a redirect is not followed")
    return Finding("ok", what, words)


def _queues(overview: Overview) -> list[Finding]:
    findings = [
        Finding(
            "fail",
            f"key {key!r}",
            f"cannot be read: {words}",
            "if it is of a wrong type, whose is it? else see the rights",
        )
        for key, words in overview.unreadable.items()
    ]
    for count, what in ((overview.running_overdue, "running"), (overview.delayed_overdue, "delayed")):
        if count:
            seen = f"{count} that no worker has looked after for 10 s"
            findings.append(Finding("fail", what, seen, "start a worker: any worker takes them up again"))
    for queue in overview.queues:
        findings += _queue(queue)
    if overview.dead:
        do = "genqueue dead list says why; genqueue dead retry, or drop"
        findings.append(Finding("warn", "dead letters", str(overview.dead), do))
    if all(finding.level == "ok" for finding in findings):
        findings.append(Finding("ok", "queues", f"{len(overview.queues)} known, none is stuck"))
    return findings


def _queue(queue: QueueStatus) -> list[Finding]:
    what, findings = f"queue {queue.generator!r}", []
    oldest = queue.oldest_wait_s or 0.0
    if queue.waiting and not queue.workers:
        seen = f"{queue.waiting} wait, the oldest for {duration(oldest)}; no worker serves it"
        findings.append(
            Finding(
                "fail",
                what,
                seen,
                f"start a worker that serves {queue.generator!r}: named by its settings and, if it has one, its -g",
            )
        )
    elif queue.waiting and not queue.doorbells and oldest > STUCK_S:
        seen = f"{queue.waiting} wait for up to {duration(oldest)}, and no doorbell is in its list"
        do = "are its workers' endpoints up, and do they log 'sweep'? restart the workers"
        findings.append(Finding("fail", what, seen, do))
    limit = queue.max_queue_depth
    if limit is not None and limit >= 0 and queue.waiting >= limit * NEARLY_FULL and queue.waiting:
        level: Level = "fail" if queue.waiting >= limit else "warn"
        do = "add workers, or raise max_queue_depth; submit refuses what is above it"
        findings.append(Finding(level, what, f"{queue.waiting} wait, limit {limit}", do))
    return findings


def _workers(overview: Overview) -> list[Finding]:
    if not overview.workers:
        return [Finding("fail", "workers", "none in the last 30 s", "start one: genqueue worker")]
    findings = [Finding("ok", "workers", f"{len(overview.workers)} in the last 30 s")]
    up = {(name, endpoint["health"]) for worker in overview.workers for name, endpoint in _endpoints(worker)}
    for worker in overview.workers:
        for name, endpoint in _endpoints(worker):
            if endpoint["health"] == "up":
                continue
            # Another that is up takes the work.
            level: Level = "warn" if endpoint["health"] not in {"down", "refuses"} or (name, "up") in up else "fail"
            seen = f"{endpoint['health']} at {worker.name}" + (
                f": {endpoint['trouble']}" if endpoint["trouble"] else ""
            )
            do = "look at that model server; its worker goes on by itself when it answers"
            if endpoint["health"] == "refuses":
                do = "mend its address in the worker's settings, or the token: token_env, or api_params.headers"
            findings.append(Finding(level, f"endpoint {endpoint['address']} of {name!r}", seen, do))
    return findings


def _endpoints(worker: WorkerStatus) -> list[tuple[str, dict[str, Any]]]:
    return [(name, endpoint) for name, endpoints in worker.generators.items() for endpoint in endpoints]


def _agreement(settings: Settings, overview: Overview) -> list[Finding]:
    """What these settings and those of the workers disagree on."""
    findings = []
    for queue in overview.queues:
        ours = settings.generators.get(queue.generator)
        if ours is None:
            continue
        what = f"generator {queue.generator!r}"
        if overview.workers and not queue.workers and not queue.waiting:
            do = "start a worker with it, or take it out of these settings"
            findings.append(Finding("warn", what, "no worker serves it", do))
        for name in ("api_type", "max_queue_depth"):
            theirs, own = getattr(queue, name), getattr(ours, name)
            if theirs is not None and theirs != own:
                do = "give both the same settings; a worker's count"
                findings.append(Finding("warn", what, f"{name} is {own} here and {theirs} at the worker", do))
    return findings
