package agent

import (
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/metrics"
	"vstun/cmd/internal/ping"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/tunnel"
	"vstun/encap/endpoint"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/tundev"
)

// agent is the running program.
type agent struct {
	file          string
	log           *slog.Logger
	level         slog.LevelVar
	flush         func() // of the log
	start         time.Time
	control       *api.Server
	http          *metrics.Server
	network       *routing.Manager
	device        *tundev.Device
	receivers     wire.Receivers
	senders       []io.Closer                     // of answers
	answerSenders []*wire.Sender                  // those of them that send by a raw socket, one for each queue
	policy        atomic.Pointer[endpoint.Policy] // made from setup and own
	sealed        sealed
	pinger        *ping.Pinger
	tunnels       *tunnel.Set // point-to-point
	fast          fastPath
	chances       chances // of packets of unknown connections
	workers       []*endpoint.Worker
	answers       []*endpoint.AnswerWorker
	questions     chan endpoint.Asked // of directors
	directors     heard               // packets by outer source
	strangers     heard               // refused packets by outer source
	absent        heard               // refused packets by inner destination
	reloader      *reload.Reloader

	mu     sync.Mutex // held by a reload, and by a refresh
	setup  atomic.Pointer[setup]
	own    []netip.Addr // addresses of this host
	warned string       // the last warning about the kernel's own drivers
}

// setup is the configuration in force and the MSS that SYN-ACKs may advertise with it. It is immutable.
type setup struct {
	cfg        *config.Realserver
	mss4, mss6 int
}

// enforce puts s in force for the workers, the fast path and the status. The caller sets a.network. After the start
// a.mu is held.
func (a *agent) enforce(s *setup) {
	rules := endpoint.Rules{Directors: s.cfg.Directors, VIPs: s.cfg.VIPs, Decapsulators: decapsulators(s.cfg),
		Port: s.cfg.EncapPort, Sealed: peers(s.cfg), LocalAddrs: a.own, MSS4: s.mss4, MSS6: s.mss6}
	if s.cfg.SecondChance.On {
		rules.Peers = s.cfg.SecondChance.Peers
	}
	policy, inSealed := endpoint.NewPolicy(rules), endpoint.NewPolicy(sealedRules(rules, s.cfg))
	a.fast.enforce(s.cfg, a.own, func() {
		a.setup.Store(s)
		a.policy.Store(policy)
		a.sealed.policy.Store(inSealed)
	})
}
