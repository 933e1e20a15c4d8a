package config

// ControlSocket reads the path of the control socket from a director.toml, whatever faults other keys have: it is needed most when there are
// some. An error that is no *Errors means that the file can't be read.
func ControlSocket(path string) (string, error) {
	text, err := readFile(path)
	if err != nil {
		return "", err
	}
	var faults Errors
	root, ok := parse(path, text, &faults)
	if ok {
		socket := readControl(root.table("director", wantDirector))
		if len(faults) == 0 {
			return socket, nil
		}
	}
	return "", &faults
}

const wantDirector = "a [director] table"

func readControl(t *table) string { return t.socket("control", "/run/vstun/director.sock") }
