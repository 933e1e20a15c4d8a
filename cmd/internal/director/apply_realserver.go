package director

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
)

// A client of the control socket can change a single realserver. The configuration file is edited, and applied like
// one that is sent as a whole.

// maxRealserver is far above the size of a realserver's keys.
const maxRealserver = 64 << 10

// getRealserver answers GET /services/NAME/realservers/REALSERVER: its keys in the configuration file.
func (d *director) getRealserver(u *api.Upload) (any, string, error) {
	id, err := api.ParseRealserver(u.Path("realserver"))
	if err != nil {
		return nil, "", err
	}
	text, etag, err := d.configuration()
	if err != nil {
		return nil, "", err
	}
	keys, err := config.RealserverKeys(text, u.Path("service"), id)
	return keys, etag, d.editError(err)
}

// putRealserver answers PUT /services/NAME/realservers/REALSERVER: the body is its keys.
func (d *director) putRealserver(u *api.Upload) (any, string, error) {
	id, err := api.ParseRealserver(u.Path("realserver"))
	if err != nil {
		return nil, "", err
	}
	keys, err := readKeys(u.Body, id)
	if err != nil {
		return nil, "", err
	}
	return d.apply(u, func(present []byte) ([]byte, error) {
		text, err := config.SetRealserver(present, u.Path("service"), id, keys)
		return text, d.editError(err)
	})
}

// deleteRealserver answers DELETE /services/NAME/realservers/REALSERVER.
func (d *director) deleteRealserver(u *api.Upload) (any, string, error) {
	id, err := api.ParseRealserver(u.Path("realserver"))
	if err != nil {
		return nil, "", err
	}
	return d.apply(u, func(present []byte) ([]byte, error) {
		text, err := config.RemoveRealserver(present, u.Path("service"), id)
		return text, d.editError(err)
	})
}

// editError returns the error about an edit of the configuration file, for the client.
func (d *director) editError(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", d.file, err)
	if missing := (*config.MissingError)(nil); errors.As(err, &missing) {
		return &api.StatusError{Status: http.StatusNotFound, Err: err}
	}
	return err
}

// readKeys reads the keys of the realserver id, a JSON object. It may have its address and port.
func readKeys(body []byte, id netip.AddrPort) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("the body is no JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the body has more than one JSON object")
	}
	v, err := tomlOf(v)
	if err != nil {
		return nil, err
	}
	keys, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the body is no JSON object: want the keys of a [[service.realserver]]")
	}
	name := words.Realserver(id)
	if v, there := keys["address"]; there {
		if a, err := netip.ParseAddr(fmt.Sprint(v)); err != nil || a != id.Addr() {
			return nil, fmt.Errorf("address: %v is not the one in the path, %s", v, name)
		}
	}
	if v, there := keys["port"]; there && v != int64(id.Port()) {
		return nil, fmt.Errorf("port: %v is not the one in the path, %s: want ADDRESS:PORT there", v, name)
	}
	return keys, nil
}

// tomlOf returns a decoded value of JSON as one of TOML.
func tomlOf(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, errors.New("null is no value: leave the key out")
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			var err error
			if v[i], err = tomlOf(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for key := range v {
			var err error
			if v[key], err = tomlOf(v[key]); err != nil {
				return nil, fmt.Errorf("%q: %w", key, err)
			}
		}
	}
	return v, nil
}
