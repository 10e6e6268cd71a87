"""Running `join`, in order.

choose the engine · load the state · check that the interface can be made · open a UDP port · pair, or take what an
earlier join kept (`obtain`) · make tunnels and interfaces (`connect`) · answer at the control socket · carry traffic
until stopped
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rustguard_py import engine
from rustguard_py.daemon import runtime
from rustguard_py.daemon.console import Voice
from rustguard_py.daemon.program import Program
from rustguard_py.data_path import DataPath
from rustguard_py.enroll.client.checks import check_interface
from rustguard_py.enroll.client.connect import fit_tunnels, lay_out, locate, make_client, without_ipv6
from rustguard_py.enroll.client.control import ClientControl
from rustguard_py.enroll.client.obtain import Applicant, Target, load, obtain
from rustguard_py.enroll.client.routes import RouteAnswers
from rustguard_py.model.clock import now
from rustguard_py.state.document import Document
from rustguard_py.system.interface import free_interface_name


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """The command line of `join`; only `join` reads it.

    Attributes:
        directory: State directory.
        target: The server to join or to connect to.
        applicant: The token and name to pair with, or None to use what an earlier join kept.
        data_path: The engine to use and its options.
        interface: Name of the interface, or None for the first free one.
        save_only: Whether to pair and save, without carrying traffic.
        group: Group allowed to use the control socket, besides root.
        answers: Which of the routes that the server offers are accepted.
    """

    directory: Path
    target: Target
    applicant: Applicant | None
    data_path: DataPath
    interface: str | None = None
    save_only: bool = False
    group: str | None = None
    answers: RouteAnswers = field(default_factory=RouteAnswers)


async def join(options: JoinOptions, voice: Voice, ready: Callable[[], None]) -> None:
    """Join, and carry traffic until stopped.

    Args:
        options: The command line.
        voice: Prints what happens.
        ready: Called once when the tunnel is up (with `save_only`, never).

    Raises:
        RustGuardError: The join failed, or the data plane broke.
    """
    async with AsyncExitStack() as stack:
        chosen = engine.choose(options.data_path)
        document = Document.open(options.directory)
        stack.callback(document.close)
        state = load(document)
        if runtime.remove_leftovers([state.private_key], options.directory):
            voice.say("Removed the interface that was left when RustGuard was killed.")
        interface = options.interface or free_interface_name()
        if not options.save_only:
            check_interface(interface, chosen)
        sockets = runtime.bind(stack, 0)
        port = sockets[0].getsockname()[1]
        network, endpoint = await obtain(
            options.target, options.applicant, document, state, sockets, voice, options.answers
        )
        if options.save_only:
            voice.say(f"Saved in {options.directory}. To connect: sudo rustguard join")
            return
        network = without_ipv6(network, voice)
        network, chosen = fit_tunnels(network, chosen, interface, voice)
        program = Program("client", options.directory, interface, chosen, now())
        client = make_client(stack, voice, program, state.private_key, sockets, network)
        # The peer is set before the interface has an address to send from. So the first packet waits for the
        # handshake and isn't dropped.
        client.connect(endpoint or await locate(network, voice))
        lay_out(stack, voice, client, in_kernel=chosen.in_kernel)
        await runtime.answer(stack, options.directory, ClientControl(client, program).handlers(), options.group)
        hint = "the server decides, or the options of `rustguard join`"
        await runtime.answer_wg_fixed(stack, client.tunnel, interface, state.private_key, port, hint)
        voice.say(f"Engine {chosen.name} ({chosen.reason}).")
        ready()
        await client.run()
