package doctor

import (
	"strings"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
)

// fastPath examines whether the agent's fast path takes packets.
func (res *result) fastPath(cfg *config.Realserver, st *api.FastPath) {
	switch {
	case st.On:
		res.fine("by %s", strings.Join(st.Devices, ", "))
	case cfg.FastPath.Off || len(cfg.Encaps) == 0:
		res.fine("not wanted")
	default:
		res.find(Finding{Severity: Hint, What: "the fast path is off",
			Why: "the sockets take all packets, which costs more", Causes: []string{st.Reason},
			Fix:     "systemctl restart vstun-realserver",
			Remarks: []string{"first remove the cause", "or set fast_path = \"off\""}})
	}
}
