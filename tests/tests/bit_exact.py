"""Builds with scapy the packets that the daemon must send and accept: per line one JSON list in, one of hex out."""
import json
import sys

from scapy.all import GRE, IP, IPv6, UDP, Raw, conf

conf.verb = 0


def inner(spec, hops):
    """A UDP packet as it is `hops` routers away from its sender."""
    source, target = spec["inner"]
    udp = UDP(sport=40000, dport=spec["port"]) / Raw(bytes.fromhex(spec["payload"]))
    if ":" in source:
        return IPv6(src=source, dst=target, hlim=64 - hops, tc=spec["tos"]) / udp
    return IP(src=source, dst=target, ttl=64 - hops, id=7, flags="DF", tos=spec["tos"]) / udp


def outer(spec, carried):
    """What goes over the underlay: DF, TTL 64, the inner ECN bits and nothing of the inner DSCP."""
    source, target = spec["outer"]
    six = ":" in spec["inner"][0]
    protocol = 47 if spec["kind"] == "gre" else 41 if six else 4
    ecn = spec["tos"] & 3 if spec["outer_tos"] is None else spec["outer_tos"]
    if ":" in source:
        header = IPv6(src=source, dst=target, hlim=64, tc=ecn, nh=protocol, fl=spec["id"])
    else:
        header = IP(src=source, dst=target, ttl=64, tos=ecn, flags="DF", id=spec["id"], proto=protocol)
    if spec["kind"] == "gre":
        fields = {"proto": 0x86DD if six else 0x0800}
        if spec["key"] is not None:
            fields.update(key_present=1, key=spec["key"])
        if spec["sequence"] is not None:
            fields.update(seqnum_present=1, seqence_number=spec["sequence"])
        if spec["checksum"]:
            fields["chksum_present"] = 1
        return header / GRE(**fields) / Raw(carried)
    return header / Raw(carried)


for line in sys.stdin:
    answers = []
    for spec in json.loads(line):
        # The host between container and underlay counts one hop.
        first, carried = bytes(inner(spec, 0)), bytes(inner(spec, 1))
        answers.append([first.hex(), bytes(outer(spec, carried)).hex()])
    print(json.dumps(answers), flush=True)
