"""A consumer as a process: appends each record it handles to a file. Ends on SIGTERM.

python consuming.py BOOTSTRAP TOPIC GROUP FILE
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from towline.contracts.settings import KafkaSettings
from towline.delivery import (
    DONE,
    Consumer,
    ConsumerOptions,
    DeadLetter,
    Delivery,
    KafkaRecord,
    Outcome,
    Retry,
)


async def main(bootstrap: str, topic: str, group: str, path: str, share: str) -> None:
    effects = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    chance = random.Random(os.getpid())

    async def handle(delivery: Delivery[str]) -> Outcome:
        await asyncio.sleep(chance.uniform(0, 0.004))
        if chance.random() < float(share):
            return Retry("chance", 0.01)
        os.write(effects, f"{delivery.message} {os.getpid()}\n".encode())
        return DONE

    async def dead_letter(_record: KafkaRecord, letter: DeadLetter) -> None:
        raise AssertionError(letter)

    consumer = Consumer(
        KafkaSettings(bootstrap=bootstrap),
        ConsumerOptions(group_id=group, topics=(topic,), session_timeout_s=6.0, drain_s=3.0),
        read=lambda record: (record.key, f"{record.key.decode()} {record.value.decode()}"),
        handle=handle,
        dead_letter=dead_letter,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
    await consumer.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
