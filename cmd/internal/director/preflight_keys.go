package director

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"vstun/cmd/internal/config"
)

// unitUser is the user of the unit vstun-director.
const unitUser = "vstun"

// keyFile is a file with a key, which is read at the start and at each reload.
type keyFile struct{ label, key, path string }

// keyFiles returns the key files of cfg.
func keyFiles(cfg *config.Director) (all []keyFile) {
	for i := range cfg.VRRP {
		if v := &cfg.VRRP[i]; v.KeyFile != "" {
			all = append(all, keyFile{instanceLabel(v), "key", v.KeyFile})
		}
	}
	if cfg.Sync.Key != "" {
		all = append(all, keyFile{"sync", "key", cfg.Sync.KeyFile})
	}
	if cfg.SecondChance.On {
		all = append(all, keyFile{"second_chance", "key", cfg.SecondChance.KeyFile})
	}
	if cfg.WireGuard.On {
		all = append(all, keyFile{"wireguard", "private_key", cfg.WireGuard.KeyFile})
	}
	return all
}

// keyWarnings says, to root, which key files the unit cannot read: root itself can.
func keyWarnings(cfg *config.Director) []string {
	if os.Geteuid() != 0 {
		return nil
	}
	account, known := readerOf(unitUser)
	if !known && !unitInstalled() {
		return nil
	}
	return unreadable(cfg, account, known)
}

// unreadable says which key files the unit's user cannot read. known: the user exists while the unit does not run.
func unreadable(cfg *config.Director, account reader, known bool) (all []string) {
	for _, f := range keyFiles(cfg) {
		info, err := os.Stat(f.path)
		if err != nil || account.reads(info) {
			continue
		}
		add := ""
		if !known {
			add = "useradd --system " + unitUser + "; "
		}
		all = append(all, fmt.Sprintf("%sthe unit's user %s cannot read %s, at the start and at a reload: %schgrp %s "+
			"%s; chmod 640 %s", cfg.Places.At(f.label, f.key, ""), unitUser, f.path, add, unitUser, f.path, f.path))
	}
	return all
}

// reader is a user that reads files, without privileges. The zero value has neither an owner's nor a group's rights.
type reader struct {
	uid  uint32
	gids []uint32
}

// readerOf returns a user of this host.
func readerOf(name string) (r reader, known bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return r, false
	}
	ids, _ := u.GroupIds() // the user's own one at least
	for _, id := range append(ids, u.Gid) {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			r.gids = append(r.gids, uint32(n))
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	r.uid = uint32(uid)
	return r, err == nil
}

// reads reports whether the permissions of a file let r read it: of the owner, else of the group, else of all.
func (r reader) reads(info os.FileInfo) bool {
	const owner, group, others = 0o400, 0o040, 0o004
	bit := os.FileMode(others)
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case r.uid != 0 && st.Uid == r.uid:
			bit = owner
		case slices.Contains(r.gids, st.Gid):
			bit = group
		}
	}
	return info.Mode()&bit != 0
}

// unitInstalled reports whether systemd has the unit.
func unitInstalled() bool {
	for _, dir := range []string{"/etc", "/usr/lib", "/lib"} {
		if _, err := os.Stat(filepath.Join(dir, "systemd/system/vstun-director.service")); err == nil {
			return true
		}
	}
	return false
}
