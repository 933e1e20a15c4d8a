package doctor

import (
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// realserverFastPath examines whether the agent's fast path takes packets.
func (res *result) realserverFastPath(cfg *config.Realserver, st *api.FastPath) {
	wanted := !cfg.FastPath.Off && len(cfg.Encaps) > 0 && !cfg.SecondChance.On
	res.fastPath(st, wanted, "the sockets take all packets, which costs more", "vstun-realserver")
}

// directorFastPath examines whether the director's fast path takes packets.
func (res *result) directorFastPath(cfg *config.Director, st *api.FastPath) {
	if st.On && st.Reason != "" {
		res.find(Finding{Severity: Hint, What: "some packets do not take the fast path",
			Why: "they take the TUN device, which costs more", Causes: strings.Split(st.Reason, "; ")})
		return
	}
	res.fastPath(st, !cfg.FastPath.Off && !cfg.TAP, "all packets take the TUN device, which costs more",
		"vstun-director")
}

// fastPath examines whether a fast path is on that is wanted. why says what else takes the packets.
func (res *result) fastPath(st *api.FastPath, wanted bool, why, unit string) {
	switch {
	case st.On && st.Reason != "":
		res.fine("by %s; not everywhere: %s", strings.Join(st.Devices, ", "), st.Reason)
	case st.On:
		res.fine("by %s", strings.Join(st.Devices, ", "))
	case !wanted:
		res.fine("not wanted")
	default:
		f := Finding{Severity: Hint, What: "the fast path is off", Why: why, Causes: []string{st.Reason},
			Remarks: []string{"it goes on without a restart when the cause is gone", "or set fast_path = \"off\""}}
		if !st.Resumes {
			f.Fix, f.Remarks[0] = "systemctl restart "+unit, "first remove the cause"
		}
		res.find(f)
	}
}
