package doctor

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/procfs"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// compareAddr lets cmp compare addresses.
var compareAddr = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})

func TestKernelServices(t *testing.T) {
	text := `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  C6336450:0050 wlc persistent 300 FFFFFFFF
  -> 0A000B02:0050      Tunnel  1      0          0
UDP  [2001:0db8:0100:0000:0000:0000:0000:0080]:0035 rr
FWM  00000001 wlc
TCP  nonsense:0050 wlc
TCP  C6336450 wlc
`
	want := []kernelService{{"TCP", addrPort("198.51.100.80:80")}, {"UDP", addrPort("[2001:db8:100::80]:53")}}
	if diff := cmp.Diff(want, parseIPVS(text), cmp.AllowUnexported(kernelService{}), compareAddr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSocketsOfTheKernel(t *testing.T) {
	const any6 = "00000000000000000000000000000000"
	tcp := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 506433C6:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:9C40 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 20 4 30 10 -1
   0: B80D0120000000000000000001000000:1F90 ` + any6 + `:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4714 1
   0: ` + any6 + `:0019 ` + any6 + `:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4715 1
   0: XX:0019 00000000:0000 0A 0 0 0 0 0 0 0
`
	all := parseSockets(tcp, true)
	want := []listener{{addrPort("0.0.0.0:80"), "4711"}, {addrPort("198.51.100.80:443"), "4712"},
		{addrPort("[2001:db8::1]:8080"), "4714"}, {addrPort("[::]:25"), "4715"}}
	if diff := cmp.Diff(want, all, cmp.AllowUnexported(listener{}), compareAddr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for vip, want := range map[string][]uint16{"198.51.100.80": {25, 80, 443}, "198.51.100.81": {25, 80},
		"2001:db8::1": {25, 8080}, "2001:db8::2": {25}} {
		if diff := cmp.Diff(want, portsFor(all, netip.MustParseAddr(vip))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", vip, diff)
		}
	}
}

func TestReversePathDrops(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "1", "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	fs, err := procfs.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := fs.Proc(1)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]int{
		"TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 3 42\nIpExt: IPReversePathFilter\nIpExt: 7\n": 42,
		"TcpExt: SyncookiesSent\nTcpExt: 3\n": -1,
	} {
		if err := os.WriteFile(filepath.Join(dir, "1", "net", "netstat"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := reversePathDrops(p); n != want && want >= 0 || (err != nil) != (want < 0) {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	self, err := procfs.Self()
	if err == nil {
		_, err = reversePathDrops(self)
	}
	if err != nil {
		t.Errorf("this kernel: %v", err)
	}
}

// iptables-legacy is examined by the output of its own program.
func TestLegacyChains(t *testing.T) {
	for rules, want := range map[string]bool{
		"-P FORWARD ACCEPT\n": false,
		"-P FORWARD DROP\n":   true,
		"-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -j ACCEPT\n":   true,
		"-P FORWARD DROP\n-A FORWARD -o vs0 -j ACCEPT\n":                                  false,
		"-P FORWARD DROP\n-A FORWARD -j ACCEPT\n":                                         false,
		"-P FORWARD DROP\n-A FORWARD -o vs01 -j ACCEPT\n-A FORWARD -o vs0 -j LOG\n":       true,
		"-P FORWARD DROP\n-A FORWARD -i eth0 -o vs0 -p tcp -m tcp --dport 80 -j ACCEPT\n": false,
	} {
		if got := dropsAll(rules, "-o vs0"); got != want {
			t.Errorf("drops all: %v, want %v:\n%s", got, want, rules)
		}
	}
}
