package wire

import (
	"fmt"
	"io"

	"golang.org/x/net/bpf"
)

// LearnPathMTU makes the kernel take ICMP errors about packets of protocol that this host sends: from "fragmentation needed" it learns the
// MTU of the way (Linux net/ipv4/raw.c, raw_err), which a socket of IPPROTO_RAW doesn't do. It is a raw socket that receives nothing,
// until it is closed. It needs CAP_NET_RAW.
func LearnPathMTU(protocol int) (io.Closer, error) {
	conn, _, err := openRaw(protocol)
	if err != nil {
		return nil, err
	}
	none, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err == nil {
		err = conn.SetBPF(none)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("raw socket of protocol %d: filter: %w", protocol, err)
	}
	return conn, nil
}
