package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/appliance/vault"
)

// keepVault makes or opens the encrypted state, as its arguments say, with the passphrase that is its input. What it says on its output is
// for somebody at the console.
func keepVault(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New(appliance.RoleVault + ": wants make or open, and a device")
	}
	passphrase, err := io.ReadAll(os.Stdin)
	if err == nil {
		v := &vault.Vault{Device: args[1], Name: appliance.VaultName, Label: appliance.StateLabel}
		var said string
		if said, err = useVault(ctx, v, args[0], passphrase, slog.New(slog.NewTextHandler(os.Stderr, nil))); err == nil {
			fmt.Println(said)
		}
	}
	if err != nil {
		fmt.Println(err)
	}
	return err
}

func useVault(ctx context.Context, v *vault.Vault, do string, passphrase []byte, log *slog.Logger) (said string, err error) {
	image, noImage := vault.ReadImage() // the passphrase does without
	tpm, noTPM := vault.OpenTPM()
	if noTPM == nil {
		noTPM = noImage
		defer func() {
			if err := errors.Join(vault.Leave(tpm), tpm.Close()); err != nil {
				log.Error("the TPM may give the state's key to programs that run from now on", "err", err)
			}
		}()
	}
	switch {
	case do == appliance.VaultMake:
		err = v.Make(ctx, passphrase)
	case do == appliance.VaultOpen && len(passphrase) > 0:
		err = v.Open(ctx, passphrase)
	case do == appliance.VaultOpen:
		if noTPM != nil {
			return "", noTPM
		}
		return "the TPM has opened it", v.OpenByTPM(ctx, tpm, image)
	default:
		return "", fmt.Errorf("%s %s: make or open", appliance.RoleVault, do)
	}
	if err != nil {
		return "", err
	}
	if noTPM == nil {
		noTPM = v.Enroll(ctx, tpm, image, passphrase)
	}
	if noTPM != nil {
		return "the passphrase will be asked for at the next start: " + noTPM.Error(), nil
	}
	return "the TPM opens the state from the next start on", nil
}
