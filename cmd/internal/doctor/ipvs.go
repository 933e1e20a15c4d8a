package doctor

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// kernelServices examines whether the kernel's IPVS has a service for a VIP. IPVS would take the VIP's packets before
// the director.
func (res *result) kernelServices(vips []netip.Addr) {
	text, err := os.ReadFile("/proc/net/ip_vs")
	if errors.Is(err, fs.ErrNotExist) {
		res.fine("the kernel's IPVS is not loaded")
		return
	}
	if res.failed(err) {
		return
	}
	for _, s := range parseIPVS(string(text)) {
		if slices.Contains(vips, s.at.Addr()) {
			flag := map[string]string{"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}[s.protocol]
			res.find(Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", s.at.Addr()),
				What: fmt.Sprintf("the kernel's own IPVS has a service %s %s", s.protocol, s.at),
				Why:  "it takes packets for the VIP before the director does",
				Fix:  fmt.Sprintf("ipvsadm -D %s %s", flag, s.at)})
		}
	}
	if len(res.findings) == 0 {
		res.fine("the kernel's IPVS has no service for a VIP")
	}
}

// kernelService is a service of the kernel's IPVS.
type kernelService struct {
	protocol string
	at       netip.AddrPort
}

// parseIPVS reads /proc/net/ip_vs: its services have lines such as "TCP  C0A80001:0050 wlc" or, with IPv6, "TCP
// [2001:0db8:…]:0050 wlc" (ip_vs_info_seq_show in net/netfilter/ipvs/ip_vs_ctl.c).
// Services by a mark have no address.
//
// It is hand-written, as procfs lists only services that have realservers.
func parseIPVS(text string) (all []kernelService) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.Contains([]string{"TCP", "UDP", "SCTP"}, fields[0]) {
			continue
		}
		colon := strings.LastIndexByte(fields[1], ':')
		if colon < 0 {
			continue
		}
		host, port := fields[1][:colon], fields[1][colon+1:]
		b, err := hex.DecodeString(port)
		if err != nil || len(b) != 2 {
			continue
		}
		var a netip.Addr
		if six, ok := strings.CutPrefix(host, "["); ok {
			a, err = netip.ParseAddr(strings.TrimSuffix(six, "]"))
		} else {
			var four []byte
			if four, err = hex.DecodeString(host); err == nil {
				a, _ = netip.AddrFromSlice(four)
			}
		}
		if err == nil && a.IsValid() {
			all = append(all, kernelService{fields[0], netip.AddrPortFrom(a, uint16(b[0])<<8|uint16(b[1]))})
		}
	}
	return all
}
