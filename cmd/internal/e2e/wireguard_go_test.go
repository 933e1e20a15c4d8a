package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vstun/cmd/internal/lab"
	"vstun/encap/wireguard"
	"vstun/testdata/testkit"
)

// TestWireGuardGo has wireguard-go's own program as the peer of the director, with its device in the realserver's
// kernel, and behind that an agent that takes ipip.
//
//	client → director ═ WireGuard: ipip ═ wireguard-go → its device → raw socket of the agent → server
func TestWireGuardGo(t *testing.T) {
	t.Parallel()
	s := newSealedSite(t, nil)
	web := s.Webs[0]
	s.startWireGuardGo(web)
	p := s.prepare(web, "realserver")
	p.configure(fmt.Sprintf("[realserver]\nvips = [%s]\ndirectors = [\"10.99.0.1\"]\ncontrol = %q\n", quoted(s.vips),
		p.socket))
	p.start()
	s.agents = append(s.agents, p)
	s.acceptUploadsAt(web, ":8001")
	s.startDirectorWith(s.wireguardTOML("check = { type = \"tcp\" }"))
	testkit.Eventually(t, "the check through the tunnel succeeds", func() bool {
		return s.director.balance().Services[0].Health == "up"
	})
	s.mustTransfer(t, 0, s.VIP, long(100_000_000, 5_000_000, 1_000_000), 1500-60-20-40)
	s.mustTransfer(t, 0, s.VIP6, long(100_000_000, 5_000_000, 1_000_000), 1500-60-20-60)
	if drops := p.intake().Drops; len(drops) > 0 {
		t.Errorf("the agent refused %v", drops)
	}
}

// startWireGuardGo starts wireguard-go on h, web1, as a peer of the director.
func (s *sealedSite) startWireGuardGo(h *lab.Host) {
	s.t.Helper()
	bin := filepath.Join(s.dir, "wireguard-go")
	build := exec.Command("go", "build", "-o", bin, "golang.zx2c4.com/wireguard")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	director, err := wireguard.ParseKey(s.directorPublic())
	if err != nil {
		s.t.Fatal(err)
	}
	inside, _ := inTunnel(0)
	private := s.keys[h.Name]
	const device = "wg0"
	process, err := h.WireGuardGo(s.t.Context(), bin, device, fmt.Sprintf("private_key=%x\nlisten_port=51820\n"+
		"public_key=%x\nallowed_ip=10.99.0.1/32", private[:], director[:]))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := process.Stop(); err != nil {
			s.t.Errorf("wireguard-go: %v\n%s", err, process.Output())
		}
	})
	s.command(h, "", "ip", "link", "set", device, "up", "mtu", "1440")
	s.command(h, "", "ip", "addr", "add", inside.String()+"/32", "dev", device)
	s.command(h, "", "ip", "route", "add", "10.99.0.1/32", "dev", device)
}
