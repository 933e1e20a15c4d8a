package wire

import (
	"io"

	"golang.org/x/net/bpf"
)

// LearnPathMTU makes the kernel take ICMP errors about packets of protocol that this host sends: from "fragmentation needed" it learns the
// MTU of the way (Linux net/ipv4/raw.c, raw_err), which a socket of IPPROTO_RAW doesn't do. It is a raw socket that receives nothing,
// until it is closed. It needs CAP_NET_RAW.
func LearnPathMTU(protocol int) (io.Closer, error) {
	return openRaw(protocol, func(fd int) error { return filter(fd, []bpf.Instruction{bpf.RetConstant{Val: 0}}) })
}
