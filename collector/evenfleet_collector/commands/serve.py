"""`evenfleet serve`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Final

import click

from evenfleet_collector import config, listen
from evenfleet_collector.app import Collector

_EPILOG: Final = """\
\b
Example:
  evenfleet serve --data ./fleet --http-port 8080 --mqtt-port 1883

\b
Exit codes: 0 stopped, 1 a part failed for good, 2 bad arguments or
configuration, or a port in use.
"""


@click.command(epilog=_EPILOG)
@click.option("--config", "file", type=click.Path(path_type=Path), help="A TOML file; --example-config prints one.")
@click.option("--data", metavar="DIR", help="Where everything is kept.  [default: ./evenfleet-data]")
@click.option("--http-host", metavar="HOST", help="Where API and dashboard listen.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, metavar="PORT", help="0 for any free one.  [default: 8080]")
@click.option("--mqtt-host", metavar="HOST", help="Where devices connect.  [default: 127.0.0.1]")
@click.option("--mqtt-port", type=int, metavar="PORT", help="0 for any free one.  [default: 1883]")
@click.option("--public-url", metavar="URL", help="How devices reach the API.  [default: made of the above]")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A further name of the API; may be repeated."
)
@click.option("--anonymous-devices/--enrolled-devices", default=None, help="Let in any device, for trials.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one line of JSON.")
@click.option("--example-config", is_flag=True, help="Print a configuration file with every setting, and end.")
@click.option("-v", "--verbose", is_flag=True, help="Log what an operator would ask about.")
def serve(
    file: Path | None,
    data: str | None,
    http_host: str | None,
    http_port: int | None,
    mqtt_host: str | None,
    mqtt_port: int | None,
    public_url: str | None,
    allowed_hosts: tuple[str, ...],
    anonymous_devices: bool | None,
    as_json: bool,
    example_config: bool,
    verbose: bool,
) -> None:
    """Run the collector until it is told to stop (Ctrl-C or SIGTERM).

    It starts nats-server as its own child, takes in what devices measure, judges it, and serves API and dashboard.
    Started again after any end, it goes on where it was.
    """
    if example_config:
        click.echo(config.example(), nl=False)
        return
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = config.load(
        file,
        os.environ,
        {
            "data": data,
            "http_host": http_host,
            "http_port": http_port,
            "mqtt_host": mqtt_host,
            "mqtt_port": mqtt_port,
            "public_url": public_url,
            "allowed_hosts": allowed_hosts or None,
            "anonymous_devices": anonymous_devices,
        },
    )

    def started(url: str, broker: str) -> None:
        if as_json:
            click.echo(json.dumps({"url": url, "mqtt": broker, "data": settings.data}))
        else:
            click.echo(
                f"Dashboard and API  {url}\nDevices (MQTT)     mqtt://{broker}\nData               {settings.data}"
            )
        if settings.public_url is None and listen.is_any(settings.http_host):
            click.echo(f"Devices are told to fetch from {url}; --public-url names another address.", err=True)
        if settings.is_open:
            click.echo("Warning: reachable from other machines, and the API has no accounts yet.", err=True)
        if settings.anonymous_devices:
            click.echo("Warning: any device is let in (--anonymous-devices).", err=True)

    async def run() -> None:
        collector = Collector(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, collector.stop)
        await collector.run(started)

    asyncio.run(run())
