"""Mutation check: break the numerical modules on purpose, one place at a time, and count how many
of the broken versions the tests notice.

    python tests/mutation.py                                      every mutant of every module
    python tests/mutation.py --limit 250 --seed 1                 a sample, spread over the modules
    python tests/mutation.py --module losses/_sliced --list       the mutants of a module, not run
    python tests/mutation.py --at divergence/_exact.py:40 --at ...       the mutants of some lines

The tree and the tests are copied to a temporary folder, so the working tree may change meanwhile.
One parent process imports what takes long to import and forks a child for each mutant (before any
JAX backend exists, so that forking is safe). The child puts the mutated module in the place of the
original and runs the tests of that module, those that killed the neighboring mutants first, until
one fails. Compiled programs are kept on disk, as most of them are the same for every mutant.

Not mutated: documentation, annotations, checks of arguments, and integers that are shapes, axes,
indices or counts.
"""

import argparse
import ast
import collections
import contextlib
import copy
import dataclasses
import importlib.machinery
import importlib.util
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import types

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax
import jax.test_util
import numpy as np  # noqa: F401  (imported once, for all children)
import pytest
import scipy.integrate
import scipy.special
import scipy.stats  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]

# The tests of each module, the most specific first.
TESTS = {
    "_laplacian": ["laplacian"],
    "_probes": ["divergence", "divergence_random", "losses", "keys"],
    "divergence/_exact": ["divergence", "divergence_random", "laplacian", "losses", "keys"],
    "divergence/_products": ["divergence", "divergence_random", "laplacian", "losses", "keys"],
    "divergence/_random": ["divergence", "divergence_random", "laplacian", "losses", "keys"],
    "divergence/_rows": ["divergence", "laplacian", "losses", "keys"],
    "losses/_contrastive": ["contrastive"],
    "losses/_denoising": ["losses", "noise_conditional", "keys"],
    "losses/_diffusion": ["noise_conditional", "keys"],
    "losses/_implicit": ["losses"],
    "losses/_noise_conditional": ["noise_conditional", "keys"],
    "losses/_second_order": ["losses", "keys"],
    "losses/_sliced": ["losses", "noise_conditional", "keys"],
    "samplers/_blackjax": ["samplers_blackjax"],
    "processes/_derived": ["processes", "noise_conditional", "samplers"],
    "processes/_processes": ["processes", "noise_conditional", "samplers"],
    "parameterization/_conversions": ["parameterization"],
    "parameterization/_energy": ["parameterization", "laplacian"],
    "parameterization/_networks": ["parameterization", "losses"],
    "parameterization/_process": ["change_process", "samplers_diffusion"],
    "samplers/_diffusion": ["samplers", "samplers_diffusion", "keys", "weak_order"],
    "samplers/_adaptation": ["metropolis"],
    "samplers/_annealed": ["samplers", "langevin", "keys", "weak_order"],
    "samplers/_langevin": ["samplers", "langevin", "keys", "weak_order"],
    "samplers/_metropolis": ["metropolis", "langevin"],
    "samplers/_underdamped": ["langevin", "weak_order"],
    "_scan": ["samplers", "steps"],
    "samplers/_solve": ["steps"],
    "samplers/steps/_common": ["steps"],
    "samplers/steps/_flow": ["steps", "samplers"],
    "samplers/steps/_langevin": ["steps", "langevin"],
    "samplers/steps/_reverse": ["steps", "samplers_diffusion"],
    "samplers/_adaptive": ["samplers_adaptive"],
    "samplers/_dpm_solver": ["samplers_diffusion", "weak_order", "steps"],
    "samplers/_generate": ["generate"],
    "samplers/_predictor_corrector": ["samplers_diffusion", "weak_order"],
    "metrics/_samples": ["metrics_samples"],
    "quantized": ["quantized"],
    "composition": ["composition"],
    "metrics/_curl": ["metrics_curl"],
    "metrics/_chains": ["samplers_blackjax"],
    "exponential_family": ["exponential_family"],
    "guidance/_inpaint": ["inverse_problems"],
    "guidance/_inverse": ["inverse_problems"],
    "guidance/_labels": ["guidance"],
    "likelihood/_annealed_importance": ["annealed_importance"],
    "likelihood/_log_weights": ["annealed_importance", "thermodynamic"],
    "likelihood/_thermodynamic": ["thermodynamic"],
    "likelihood/_elbo": ["elbo"],
    "likelihood/_flow": ["likelihood"],
    "likelihood/_dequantized": ["dequantized"],
    "likelihood/_adaptive": ["adaptive_likelihood"],
}

# Calls whose integer arguments are shapes, axes and counts.
_SHAPES = {
    *("arange", "broadcast_to", "check_count", "linspace", "max", "moveaxis", "one_hot", "range"),
    *("reshape", "split", "zeros"),
}
# Calls whose result is not a number, so that it has no sign.
_NOT_NUMBERS = {
    *("Divergence", "DivergenceEstimate", "ExponentialFamilyFit", "LogProb"),
    *("checkpoint", "run", "tuple"),
}


@dataclasses.dataclass
class Mutant:
    """A replacement of one node of the syntax tree of a module."""

    module: str
    function: str
    line: int
    before: str
    after: str
    apply: collections.abc.Callable[[], None]

    def __str__(self):
        return f"{self.module}.py:{self.line}: {self.before}  ->  {self.after}"


def expression(source, **parts):
    """Return the syntax tree of ``source`` with names replaced by the trees of ``parts``."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node):
            return copy.deepcopy(parts.get(node.id, node))

    return Fill().visit(ast.parse(source, mode="eval").body)


def called(node):
    """Return the last part of the name of a called function, or None."""
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def is_number(node):
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def is_integer(node):
    return isinstance(node, ast.Constant) and type(node.value) is int


_SWAPS = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}


def replacements(node, parent):
    """Yield the broken forms of an expression."""
    if isinstance(node, ast.BinOp):
        a, b, kind = node.left, node.right, type(node.op)
        for swap in _SWAPS.get(kind, ()):
            yield ast.BinOp(a, swap(), b)
        # The other term or factor, the power or the modulus dropped. To drop the factor of 0.5 or
        # 2.0 is to double or halve it, which comes later.
        if kind in (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Mod) and not is_number(a):
            yield a
        if kind in (ast.Add, ast.Mult) and not is_number(a):
            yield b
        if kind is ast.Sub:
            yield ast.UnaryOp(ast.USub(), b)
        if kind is ast.Pow and is_integer(b):
            yield ast.BinOp(a, ast.Pow(), ast.Constant(b.value + 1))
        elif is_integer(a):
            yield ast.BinOp(ast.Constant(2 * a.value), node.op, b)
        elif is_integer(b):
            yield ast.BinOp(a, node.op, ast.Constant(2 * b.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        if node.value == 0.0:
            yield ast.Constant(1.0)
        else:
            yield ast.Constant(2.0 * node.value)
            yield ast.Constant(0.5 * node.value)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for swap in _SWAPS.get(type(node.ops[0]), ()):
            yield ast.Compare(node.left, [swap()], node.comparators)
    elif called(node) == "split":
        unpacked = isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Tuple)
        if len(node.args) == 2 and not unpacked:
            yield expression(
                "jax.numpy.stack([key] * (count))", key=node.args[0], count=node.args[1]
            )
    elif called(node) == "stop_gradient":
        yield node.args[0]
    elif called(node) in ("mean", "sum") and isinstance(node.func, ast.Attribute):
        other = {"mean": "sum", "sum": "mean"}[node.func.attr]
        keywords = [k for k in node.keywords if k.arg != "dtype"]
        yield ast.Call(ast.Attribute(node.func.value, other, ast.Load()), node.args, keywords)


def unpacked_keys(node):
    """Yield an unpacked split of a key with two of the keys the same."""
    if not (isinstance(node, ast.Assign) and called(node.value) == "split"):
        return
    count = len(node.targets[0].elts) if isinstance(node.targets[0], ast.Tuple) else 0
    for j, i in itertools.combinations(range(count), 2):
        order = ast.parse(str([j if k == i else k for k in range(count)]), mode="eval").body
        keys = expression("[keys[i] for i in order]", keys=node.value, order=order)
        yield ast.Assign(node.targets, keys, lineno=node.lineno)


def negated(node):
    """Yield a returned value with its sign flipped, element by element for tuples and records."""
    if isinstance(node, ast.Tuple):
        for i, element in enumerate(node.elts):
            for other in negated(element):
                yield ast.Tuple([*node.elts[:i], other, *node.elts[i + 1 :]], ast.Load())
    elif called(node) in _NOT_NUMBERS - {"checkpoint", "run", "tuple"}:
        for i, element in enumerate(node.args):
            for other in negated(element):
                yield ast.Call(node.func, [*node.args[:i], other, *node.args[i + 1 :]], [])
    elif isinstance(node, ast.BinOp | ast.Call) and called(node) not in _NOT_NUMBERS:
        first = node
        while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Mult | ast.Div):
            first = first.left
        if not isinstance(first, ast.UnaryOp):  # else the sign is dropped there
            yield ast.UnaryOp(ast.USub(), node)


def is_check(node):
    """Whether a statement only checks arguments, documents or imports."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
        return True
    if isinstance(node, ast.If):
        return all(isinstance(child, ast.Raise) for child in node.body)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (called(node.value) or "").startswith(
            ("check_", "_check")
        )
    return False


def counts_only(node):
    """Whether an expression within the arguments of a shape is integer arithmetic."""
    return isinstance(node, ast.Constant | ast.UnaryOp | ast.BinOp) and any(
        is_integer(child) for child in ast.walk(node)
    )


def mutants(module, tree):
    """Return all mutants of a syntax tree, in the order of its lines."""
    found = []

    def add(function, parent, field, index, node, new):
        if ast.dump(new) == ast.dump(node):
            return
        new = ast.fix_missing_locations(ast.copy_location(new, node))

        def apply():
            if index is None:
                setattr(parent, field, new)
            else:
                getattr(parent, field)[index] = new

        line, before, after = node.lineno, ast.unparse(node), ast.unparse(new)
        found.append(Mutant(module, function, line, before, after, apply))

    def visit(node, function, in_shape):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            function = f"{function}.{node.name}".lstrip(".")
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "slice", "format_spec"):
                continue
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, child in children:
                if not isinstance(child, ast.AST) or is_check(child):
                    continue
                if isinstance(child, ast.keyword) and child.arg in ("axis", "out_axes"):
                    continue
                shape = in_shape or (called(node) in _SHAPES and field in ("args", "keywords"))
                if shape and counts_only(child):
                    continue
                for new in unpacked_keys(child):
                    add(function, node, field, index, child, new)
                for new in replacements(child, node):
                    add(function, node, field, index, child, new)
                if isinstance(node, ast.Return) or (
                    isinstance(node, ast.Lambda) and field == "body"
                ):
                    for new in negated(child):
                        add(function, node, field, index, child, new)
                if field == "test" and not isinstance(child, ast.Compare):
                    new = ast.UnaryOp(ast.Not(), child)
                    add(function, node, field, index, child, new)
                if isinstance(child, ast.keyword) and child.arg == "ddof":
                    add(function, child, "value", None, child.value, ast.Constant(0))
                visit(child, function, shape and not isinstance(child, ast.Lambda))

    visit(tree, "", False)
    return found


class Order:
    """A pytest plugin: run the likely killers first, and report the killer and the durations."""

    def __init__(self, report):
        self.rank = {}
        self.report = report

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.rank.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.report.write(f"failed {report.nodeid}\n")
        elif report.when == "call":
            self.report.write(f"{report.duration} {report.nodeid}\n")
        self.report.flush()

    def pytest_collectreport(self, report):
        if report.failed:
            self.report.write(f"failed import of {report.nodeid}\n")
            self.report.flush()


def child(folder, module, tree, mutant, tests, rank, slot):
    """Run the tests of a module with a mutated tree; never returns."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(folder)
    log = os.open(folder / f"log-{slot}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 99
    try:
        if mutant is not None:
            mutant.apply()
        name = "sm_jax." + module.replace("/", ".")
        path = str(folder / "sm_jax" / f"{module}.py")
        used = []

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                used.append(fullname)
                return compile(tree, path, "exec")

        def find_spec(fullname, search, target=None):
            if fullname == name:
                loader = Loader(name, path)
                return importlib.util.spec_from_file_location(name, path, loader=loader)

        sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
        sys.path.insert(0, str(folder))
        jax.config.update("jax_compilation_cache_dir", str(folder / f"cache-{slot}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        with open(folder / f"report-{slot}", "w") as report:
            order = Order(report)
            order.rank = rank
            files = [f"tests/test_{test}.py" for test in tests]
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files], [order]))
        if not used:
            status = 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclasses.dataclass
class Run:
    """A child under way."""

    pid: int
    slot: int
    start: float
    limit: float
    module: str
    mutant: Mutant | None


class Pool:
    """Children, so many at a time, each slot with its own cache of compiled programs."""

    def __init__(self, folder, jobs):
        self.folder, self.free, self.running = folder, list(range(jobs)), []

    def start(self, module, tree, mutant, tests, rank, limit):
        slot = self.free.pop()
        pid = os.fork()
        if pid == 0:
            child(self.folder, module, tree, mutant, tests, rank, slot)
        self.running.append(Run(pid, slot, time.monotonic(), limit, module, mutant))

    def kill(self, run):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        os.waitpid(run.pid, 0)

    def share_caches(self, kept):
        """Give every slot the compiled programs of all, and keep them in a folder."""
        caches = [self.folder / f"cache-{slot}" for slot in self.free]
        for cache in caches:
            shutil.copytree(cache, kept, dirs_exist_ok=True)
        for cache in caches:
            shutil.copytree(kept, cache, dirs_exist_ok=True)

    def wait(self):
        """Wait for a child to end or to exceed its time: its run, status, report."""
        while True:
            for run in self.running:
                pid, code = os.waitpid(run.pid, os.WNOHANG)
                late = time.monotonic() - run.start > run.limit
                if pid == 0 and not late:
                    continue
                if pid == 0:
                    self.kill(run)  # perhaps while it wrote to its cache
                    shutil.rmtree(self.folder / f"cache-{run.slot}", ignore_errors=True)
                self.running.remove(run)
                self.free.append(run.slot)
                status = "late" if late and pid == 0 else os.waitstatus_to_exitcode(code)
                report = self.folder / f"report-{run.slot}"
                lines = report.read_text().splitlines() if report.exists() else []
                return run, status, [line.split(" ", 1) for line in lines]
            time.sleep(0.05)


def baseline(pool, trees, kept):
    """Run the tests of all modules as they are; return the durations of the tests."""
    for slot in pool.free:
        shutil.copytree(kept, pool.folder / f"cache-{slot}")
    waiting = {test: module for module in trees for test in TESTS[module]}
    durations = {}
    while waiting or pool.running:
        while waiting and pool.free:
            test, module = waiting.popitem()
            pool.start(module, trees[module], None, [test], {}, 3600.0)
        run, status, lines = pool.wait()
        if status != 0:
            log = (pool.folder / f"log-{run.slot}").read_text()
            raise SystemExit(f"{log}\nThe tests of {run.module} fail before any mutation.")
        durations |= {test: float(seconds) for seconds, test in lines}
    pool.share_caches(kept)
    return durations


def ranks(tests, function, durations, kills):
    """Return the order of the tests: the latest killers; then file by file, those named after the
    function first, and the cheap ones first."""
    words = [word.strip("_").lower() for word in function.split(".")]
    rank = {
        name: place + (0.0 if any(word in name for word in words) else 0.5) + min(cost / 1e4, 0.4)
        for place, test in enumerate(tests)
        for name, cost in durations.items()
        if name.startswith(f"tests/test_{test}.py")
    }
    return rank | {name: -1.0 - when for name, when in kills.items()}


def check(trees, chosen, jobs, kept):
    """Run the tests against every chosen mutant; return the survivors and the counts."""
    survivors, killed, total = [], collections.Counter(), collections.Counter()
    recent = collections.defaultdict(dict)  # when a test last killed, by module and by function
    waiting = collections.deque(chosen)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        folder = pathlib.Path(folder)
        for part in ("sm_jax", "tests"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "setup.cfg", folder)
        pool, start = Pool(folder, jobs), time.monotonic()
        try:
            durations = baseline(pool, trees, kept)
            seconds = time.monotonic() - start
            print(f"{len(durations)} tests pass before mutation, {seconds:.0f} s", flush=True)
            while waiting or pool.running:
                while waiting and pool.free:
                    mutant = waiting.popleft()
                    module, tests = mutant.module, TESTS[mutant.module]
                    kills = recent[module] | recent[module, mutant.function]
                    rank = ranks(tests, mutant.function, durations, kills)
                    limit = 60.0 + 4.0 * sum(durations[name] for name in rank)
                    pool.start(module, trees[module], mutant, tests, rank, limit)
                run, status, lines = pool.wait()
                mutant, seconds = run.mutant, time.monotonic() - run.start
                if status in (3, 4, 5, 98, 99):  # no verdict of a test
                    log = (folder / f"log-{run.slot}").read_text()
                    raise SystemExit(f"{log}\nThe check itself failed ({status}) on {mutant}")
                total[mutant.module] += 1
                when = total.total()
                if status == 0:
                    survivors.append(mutant)
                    verdict = "SURVIVED"
                else:
                    killed[mutant.module] += 1
                    killers = [name for first, name in lines if first == "failed"]
                    verdict = "too slow" if status == "late" else f"killed by {killers or status}"
                    for name in killers:
                        if name in durations:
                            recent[mutant.module][name] = when
                            recent[mutant.module, mutant.function][name] = len(chosen) + when
                print(f"{when}/{len(chosen)} {mutant}: {verdict}, {seconds:.0f} s", flush=True)
        finally:
            for run in pool.running:
                pool.kill(run)
    return survivors, killed, total


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", action="append", help=f"one of {', '.join(TESTS)}, or a prefix")
    parser.add_argument("--at", action="append", help="FILE:LINE, only the mutants of this line")
    parser.add_argument("--limit", type=int, help="number of mutants, sampled; all by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants run at a time")
    parser.add_argument("--cache", help="folder that keeps compiled programs for the next run")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    start = time.monotonic()
    wanted = options.module or [""]
    names = [m for m in TESTS if any(m.startswith(w) for w in wanted)]
    if not names:
        parser.error(f"no module named {options.module}: choose from {', '.join(TESTS)}")
    trees = {m: ast.parse((ROOT / "sm_jax" / f"{m}.py").read_text()) for m in names}
    chosen = [mutant for module, tree in trees.items() for mutant in mutants(module, tree)]
    if options.at:
        chosen = [m for m in chosen if f"{m.module}.py:{m.line}" in options.at]
        trees = {m: tree for m, tree in trees.items() if any(c.module == m for c in chosen)}
    if options.limit and options.limit < len(chosen):
        draw = random.Random(options.seed)  # one mutant from each of so many equal stretches
        edges = [i * len(chosen) // options.limit for i in range(options.limit + 1)]
        chosen = [chosen[draw.randrange(a, b)] for a, b in itertools.pairwise(edges)]
    if options.list:
        print(*chosen, f"{len(chosen)} mutants", sep="\n")
        return

    with tempfile.TemporaryDirectory(prefix="mutation-cache-") as temporary:
        kept = pathlib.Path(options.cache or temporary).resolve()
        kept.mkdir(parents=True, exist_ok=True)
        survivors, killed, total = check(trees, chosen, options.jobs, kept)
    print("\n| module | killed | mutants | share |\n|---|---|---|---|")
    for module in total:
        share = 100 * killed[module] / total[module]
        print(f"| {module} | {killed[module]} | {total[module]} | {share:.1f} % |")
    share = 100 * killed.total() / total.total()
    print(f"| all | {killed.total()} | {total.total()} | {share:.1f} % |")
    print(f"\n{time.monotonic() - start:.0f} s. Survivors:", *survivors, sep="\n")


if __name__ == "__main__":
    main()
