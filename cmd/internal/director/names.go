package director

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/resolve"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/reload"
)

// firstNames is how long a start or a reload waits for the first answers to its names. Later ones are taken as they
// come.
const firstNames = 2 * time.Second

// awaitNames asks for the names of cfg, too, and waits for the first answers. Any goroutine may call it.
func (c *controller) awaitNames(cfg *config.Director) {
	queries := plan.Queries(cfg)
	if len(queries) == 0 {
		return
	}
	c.names.Add(queries)
	ctx, cancel := context.WithTimeout(context.Background(), firstNames)
	defer cancel()
	c.names.Await(ctx)
}

// askNames asks for the names of the configuration in force alone.
func (c *controller) askNames() { c.names.Set(plan.Queries(c.state().inputs.File)) }

// followNames puts new answers of name servers in force, and logs what has changed. A realserver that leaves keeps its
// connections, as one that leaves the file by a reload. The channel pause delivers when the next answers may be taken.
// If the change is refused, the next refresh tries again.
func (c *controller) followNames() (pause <-chan time.Time) {
	begin := time.Now()
	c.logNames()
	was := c.state()
	in := was.inputs.Answered(c.names.Answers())
	if in.Config == was.inputs.Config && slices.Equal(in.Refused, was.inputs.Refused) {
		c.namesRefused = false
		return time.After(betweenChanges)
	}
	if in.Config != was.inputs.Config {
		c.resolvePaths(&in)
		c.awaitNeighbours(&in, firstAnswerHanded)
	}
	err := c.follow(in)
	c.logFailure(slog.LevelError, "cannot apply the answers of name servers: the former realservers stay", err)
	if c.namesRefused = err != nil; err != nil {
		c.restoreNeighbours()
	} else {
		c.logAnswers(was)
		if in.Config != was.inputs.Config {
			c.checks.warnShort(c.log)
		}
		c.trim()
	}
	return time.After(pathsPause(time.Since(begin)))
}

// logAnswers logs what the answers in force have changed since the state was, nil at the start.
func (c *controller) logAnswers(was *state) {
	is, former := &c.state().inputs, plan.Inputs{}
	if was != nil {
		former = was.inputs
		changed := slices.Concat(changes(former.Config, is.Config), droppedWeights(former.Weights, is.Weights))
		for i, change := range changed {
			if i == reload.LoggedChanges {
				c.log.Info("more realservers changed by names, not logged", "changes", len(changed)-i)
				break
			}
			c.log.Info("names: " + change.Text)
		}
	}
	logged := 0
	for _, r := range is.Refused {
		if logged++; !slices.Contains(former.Refused, r) && logged <= reload.LoggedChanges {
			c.log.Warn("an address of a name is refused", "service", r.Service, "name", r.Host, "realserver",
				r.Realserver.Addr(), "reason", r.Reason)
		}
	}
}

// logNames logs the names that cannot be resolved any more, or can again, and those with too many addresses.
func (c *controller) logNames() {
	failing, cut := map[resolve.Query]bool{}, map[resolve.Query]bool{}
	for _, st := range c.names.States() {
		args := []any{"name", st.Name, "type", nameType(st.Query)}
		switch failed := st.Error != ""; {
		case failed && !c.failing[st.Query] && st.Answer == nil:
			c.log.Warn("name not resolved: it has no realservers yet", append(args, "error", st.Error)...)
		case failed && !c.failing[st.Query]:
			c.log.Warn("name not resolved: the last answer stays", append(args, "error", st.Error)...)
		case !failed && c.failing[st.Query]:
			c.log.Info("name resolved again", args...)
		}
		failing[st.Query] = st.Error != ""
		if cut[st.Query] = st.Answer != nil && st.Answer.Cut > 0; cut[st.Query] && !c.cut[st.Query] {
			c.log.Warn("a name has too many addresses: the last ones in order are left out",
				append(args, "left_out", st.Answer.Cut, "max", resolve.MaxAddresses)...)
		}
	}
	c.failing, c.cut = failing, cut
}

func nameType(q resolve.Query) string {
	if q.SRV {
		return "srv"
	}
	return "address"
}

// namesStatus returns the states of the names.
func (c *controller) namesStatus(now time.Time) (all []api.Name) {
	in := &c.state().inputs
	for _, st := range c.names.States() {
		n := api.Name{Name: st.Name, Type: nameType(st.Query), Family: string(st.Family),
			Services: plan.Asking(in.File, st.Query), Failures: st.Failures, Error: st.Error,
			Targets: []api.NameTarget{}}
		if st.Server.IsValid() {
			n.Server = st.Server.String()
		}
		if st.Error != "" {
			n.Failing = since(st.Since, now)
		}
		if a := st.Answer; a != nil {
			age := since(a.Time, now)
			n.Answered, n.Cut = &age, a.Cut
			for _, t := range a.Targets {
				n.Targets = append(n.Targets, nameTarget(t))
			}
		}
		for _, r := range in.Refused {
			if slices.Contains(n.Services, r.Service) && n.Has(r.Host, r.Realserver.Addr().String()) {
				n.Refused = append(n.Refused, api.NameRefused{Service: r.Service, Host: r.Host,
					Address: r.Realserver.Addr().String(), Reason: r.Reason})
			}
		}
		all = append(all, n)
	}
	return all
}

func nameTarget(t resolve.Target) api.NameTarget {
	n := api.NameTarget{Host: t.Host, Port: t.Port, Priority: t.Priority, Weight: t.Weight}
	for _, a := range t.Addresses {
		n.Addresses = append(n.Addresses, a.String())
	}
	return n
}

// keptAnswer is an answer in the memory that outlives the process.
type keptAnswer struct {
	Query  resolve.Query  `json:"query"`
	Answer resolve.Answer `json:"answer"`
}

// keptAnswers returns answers as the memory has them.
func keptAnswers(answers plan.Answers) (all []keptAnswer) {
	for q, a := range answers {
		all = append(all, keptAnswer{q, *a})
	}
	return all
}

// recalledAnswers is the reverse of keptAnswers.
func recalledAnswers(all []keptAnswer) plan.Answers {
	answers := plan.Answers{}
	for _, k := range all {
		for i := range k.Answer.Targets {
			k.Answer.Targets[i].Addresses = slices.DeleteFunc(k.Answer.Targets[i].Addresses,
				func(a netip.Addr) bool { return !a.IsValid() })
		}
		answers[k.Query] = &k.Answer
	}
	return answers
}
