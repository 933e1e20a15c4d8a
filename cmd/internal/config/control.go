package config

// ControlSocket reads the path of the control socket from a director.toml, whatever faults other keys have: it is needed most when there are
// some. An error that is no *Errors means that the file can't be read.
func ControlSocket(path string) (string, error) {
	text, err := readFile(path)
	if err != nil {
		return "", err
	}
	root, ok := parse(path, text)
	if ok {
		socket := readControl(root.table("director", wantDirector))
		if len(root.file.faults) == 0 {
			return socket, nil
		}
	}
	return "", &root.file.faults
}

const wantDirector = "a [director] table"

func readControl(t *table) string { return t.socket("control", "/run/vstun/director.sock") }
