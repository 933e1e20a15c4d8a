package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vstun/balancer/resolve"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
)

// resolveTime bounds the questions to name servers for a director that does not run.
const resolveTime = 5 * time.Second

// resolved returns d with the realservers of its names, and the states of the names: those of the running director,
// known; or what the name servers answer now, if known is nil.
func (d *Director) resolved(ctx context.Context, known *api.DirectorStatus) (*Director, []api.Name) {
	queries := plan.Queries(d.Config)
	if len(queries) == 0 {
		return d, nil
	}
	var answers plan.Answers
	var names []api.Name
	if known != nil {
		answers, names = answersOf(d.Config, known.Names), known.Names
	} else {
		r := resolve.New()
		defer r.Close()
		r.Set(queries)
		ctx, cancel := context.WithTimeout(ctx, resolveTime)
		defer cancel()
		r.Await(ctx)
		for _, st := range r.States() {
			n := api.Name{Name: st.Name, Services: plan.Asking(d.Config, st.Query), Error: st.Error}
			if st.Answer == nil && st.Error == "" {
				n.Error = fmt.Sprintf("no answer within %v", resolveTime)
			}
			names = append(names, n)
		}
		answers = r.Answers()
	}
	cfg, _ := plan.Resolved(d.Config, answers, nil)
	is := *d
	is.Config = cfg
	return &is, names
}

// answersOf returns the answers that a running director has for the names of cfg.
func answersOf(cfg *config.Director, names []api.Name) plan.Answers {
	answers := plan.Answers{}
	for q := range plan.Queries(cfg) {
		for i := range names {
			n := &names[i]
			if n.Name != q.Name || (n.Type == "srv") != q.SRV || n.Family != string(q.Family) ||
				n.Server != "" && n.Server != q.Server.String() {
				continue
			}
			a := &resolve.Answer{}
			for _, t := range n.Targets {
				to := resolve.Target{Host: t.Host, Port: t.Port, Priority: t.Priority, Weight: t.Weight}
				for _, text := range t.Addresses {
					if addr, err := netip.ParseAddr(text); err == nil {
						to.Addresses = append(to.Addresses, addr)
					}
				}
				a.Targets = append(a.Targets, to)
			}
			answers[q] = a
		}
	}
	return answers
}

// names examines whether the names of realservers can be resolved.
func (res *result) names(all []api.Name) {
	addresses := 0
	for i := range all {
		n := &all[i]
		addresses += n.Addresses()
		where := fmt.Sprintf("name %s (%s)", n.Name, strings.Join(n.Services, ", "))
		if n.Error != "" {
			f := Finding{Severity: Warning, Where: where, What: "it cannot be resolved: " + n.Error, Fix: asking(n),
				Why: "its last addresses stay realservers"}
			if n.Answered == nil {
				f.Severity, f.Why = Error, "its realservers are missing"
			}
			res.find(f)
		}
		for _, r := range n.Refused {
			res.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("its address %s is refused: %s",
				r.Address,
				r.Reason), Why: "a realserver is missing", Fix: asking(n)})
		}
		if n.Cut > 0 {
			res.find(Finding{Severity: Warning, Where: where, What: fmt.Sprintf("%d of its addresses are left out",
				n.Cut),
				Why: fmt.Sprintf("a name gives %d realservers at most", resolve.MaxAddresses), Fix: asking(n)})
		}
	}
	switch {
	case len(all) == 0:
		res.fine("no realserver has a name")
	case len(res.findings) == 0:
		res.fine("%d resolved, with %d addresses", len(all), addresses)
	}
}

// asking returns a command that shows the answer for a name.
func asking(n *api.Name) string {
	command := "dig"
	if n.Server != "" {
		if at, err := netip.ParseAddrPort(n.Server); err == nil {
			command += fmt.Sprintf(" -p %d @%v", at.Port(), at.Addr())
		}
	} else {
		command += " +search"
	}
	if n.Type == "srv" {
		return command + " " + n.Name + " SRV"
	}
	return command + " " + n.Name
}
