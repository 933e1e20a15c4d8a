package director

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/reload"
	"vstun/cmd/internal/replace"
)

// A client of the control socket can send a whole configuration. Its text becomes that of the configuration file:
//
//	check → write beside the file → put in force → rename
//
// The file never has a text that has not been in force. A director that is killed before the rename starts again with
// the former one; its client has had no answer.

// configuration answers GET /configuration: the text of the configuration file, whether it is in force or not.
func (d *director) configuration() (text []byte, etag string, err error) {
	if text, err = config.Read(d.file); err != nil {
		return nil, "", err
	}
	return text, entityTag(text), nil
}

// entityTag returns the ETag of a configuration's text.
func entityTag(text []byte) string { return `"` + config.Digest(text) + `"` }

// putConfiguration answers PUT /configuration. In the query, name stands for the text in messages, and dry_run lets the
// director answer and change nothing.
func (d *director) putConfiguration(u *api.Upload) (any, string, error) {
	return d.apply(u, func([]byte) ([]byte, error) { return u.Body, nil })
}

// apply puts the configuration in force that edit makes of the file's present text.
func (d *director) apply(u *api.Upload, edit func(present []byte) ([]byte, error)) (any, string, error) {
	c := candidate{name: cmp.Or(printable(u.Query.Get("name")), d.file)}
	begin := func() (err error) {
		if c.present, err = config.Read(d.file); err != nil {
			return err
		}
		if c.text, err = edit(c.present); err != nil {
			return err
		}
		return d.checkSeen(u, &c)
	}
	answer := api.Applied{File: d.file}
	dry, err := dryRun(u.Query)
	if err != nil {
		return nil, "", err
	}
	if dry {
		if err := begin(); err != nil {
			return nil, "", err
		}
		r, err := d.tryOut(&c)
		answer.Changes, answer.Warnings = r.Changes, r.Warnings
		return answer, entityTag(c.present), err
	}
	answer.Changes, err = d.reloader.Apply(u.Client, func() (r reload.Result, err error) {
		if err = begin(); err == nil {
			r, err = d.putInForce(&c)
		}
		answer.Written, answer.Warnings = !bytes.Equal(c.text, c.present), r.Warnings
		return r, err
	})
	return answer, entityTag(c.text), err
}

// dryRun reports whether a query has dry_run: without a value, or with true.
func dryRun(q url.Values) (bool, error) {
	value := q.Get("dry_run")
	if value == "" {
		return q.Has("dry_run"), nil
	}
	dry, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("dry_run: %q is unknown: want true or false", value)
	}
	return dry, nil
}

// printable replaces what cannot stand in a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// candidate is a configuration that a client has sent.
type candidate struct {
	name    string // stands for text in messages
	text    []byte
	present []byte // the text of the configuration file
}

// checkSeen returns an error if c replaces a text of the configuration file that the client has not seen. A client
// shows by If-Match what it has seen; without that header it has seen the configuration in force.
func (d *director) checkSeen(u *api.Upload, c *candidate) error {
	if u.IfMatch != "" {
		if u.Matches(entityTag(c.present)) {
			return nil
		}
		return &api.StatusError{Status: http.StatusPreconditionFailed, Err: fmt.Errorf("%s has changed meanwhile, its "+
			"ETag is %s: get it again, and send that one as If-Match", d.file, entityTag(c.present))}
	}
	if bytes.Equal(u.Body, c.present) || config.Digest(c.present) == d.controller.state().inputs.Config.Digest {
		return nil
	}
	return &api.StatusError{Status: http.StatusPreconditionFailed, Err: fmt.Errorf("%s has changed since the director "+
		"has read it: put it in force by a reload, or overwrite it (apply --force, or If-Match with its ETag or *)",
		d.file)}
}

// tryOut returns the changes and warnings that c would make, or its faults.
func (d *director) tryOut(c *candidate) (reload.Result, error) {
	cfg, err := d.examine(c)
	if err == nil {
		err = d.checkConflicts(cfg)
	}
	if err != nil {
		return reload.Result{}, err
	}
	was := d.controller.state().inputs
	return result(was, was.Reconfigured(cfg)), nil
}

// examine returns c's configuration, or all its faults.
func (d *director) examine(c *candidate) (*config.Director, error) {
	cfg, err := config.ParseDirector(c.name, c.text)
	if err != nil {
		return nil, err
	}
	was := d.controller.state().inputs.Config
	return cfg, errors.Join(sameProgram(c.name, was, cfg), checkAddresses(cfg), d.plane.allows(cfg),
		added(checkSubnets(c.name, was), checkSubnets(c.name, cfg)))
}

// added returns the lines of the error is that are not in the error was. The network may have become worse than it was
// when the configuration in force was checked. That is no reason against another one.
func added(was, is error) error {
	if was == nil || is == nil {
		return is
	}
	former := strings.Split(was.Error(), "\n")
	var errs []error
	for line := range strings.SplitSeq(is.Error(), "\n") {
		if !slices.Contains(former, line) {
			errs = append(errs, errors.New(line))
		}
	}
	return errors.Join(errs...)
}

// putInForce puts c in force, and makes its text that of the configuration file. On an error neither has changed.
func (d *director) putInForce(c *candidate) (r reload.Result, err error) {
	cfg, err := d.examine(c)
	if err != nil {
		return r, err
	}
	if c.name != d.file { // its lines are about the file from now on
		if cfg, err = config.ParseDirector(d.file, c.text); err != nil {
			return r, err
		}
	}
	var next *replace.Replacement
	if !bytes.Equal(c.text, c.present) {
		if next, err = replace.Prepare(d.file, c.text); err != nil {
			return r, unwritable(d.file, err)
		}
		defer func() { err = errors.Join(err, next.Discard()) }()
	}
	was, is, err := d.configure(cfg)
	if err != nil {
		return r, err
	}
	if next != nil {
		if err := d.rename(c, next); err != nil {
			return r, errors.Join(err, d.restore(was))
		}
	}
	return result(was.inputs, is.inputs), nil
}

// restore puts a former state's configuration in force again, with the weights that operators had set.
func (d *director) restore(was *state) error {
	if _, _, err := d.configure(was.inputs.File); err != nil {
		return err
	}
	return d.controller.restoreWeights(was.inputs.Weights)
}

// rename makes next the configuration file, unless that has changed meanwhile.
func (d *director) rename(c *candidate, next *replace.Replacement) error {
	now, err := config.Read(d.file)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, c.present) {
		return &api.StatusError{Status: http.StatusPreconditionFailed,
			Err: fmt.Errorf("%s has changed meanwhile: get it again", d.file)}
	}
	if err := next.Commit(); err != nil {
		return unwritable(d.file, err)
	}
	return nil
}

// unwritable returns the error about a configuration file that cannot be replaced.
func unwritable(file string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		remedy = ": give the file and its folder to the director's user, in systemd's unit by StateDirectory="
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		remedy = ": make room on its disk"
	}
	return &api.StatusError{Status: http.StatusForbidden,
		Err: fmt.Errorf("%s: cannot be replaced: %w: nothing changed%s", file, err, remedy)}
}
