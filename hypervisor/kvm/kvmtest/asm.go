package kvmtest

import "encoding/binary"

// Reg is a general-purpose register by its number in instructions.
type Reg byte

// The registers without a REX prefix.
const (
	RAX Reg = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
)

// Asm puts x86-64 instructions one after the other, as bytes. It knows those that our test guests need and no more.
// Memory operands are [register], with RAX, RCX, RDX, RBX, RSI or RDI.
type Asm struct {
	Base uint64 // where the first byte will lie
	Code []byte
}

// Bytes adds an instruction that has no method.
func (a *Asm) Bytes(b ...byte) *Asm {
	a.Code = append(a.Code, b...)
	return a
}

// Here returns the address of the next instruction, for a later jump back.
func (a *Asm) Here() uint64 { return a.Base + uint64(len(a.Code)) }

func (a *Asm) imm32(v uint32) *Asm {
	a.Code = binary.LittleEndian.AppendUint32(a.Code, v)
	return a
}

// mem adds the ModRM byte of an operand [base] and a register or an opcode's extension.
func (a *Asm) mem(base Reg, ext byte) *Asm { return a.Bytes(ext<<3 | byte(base)) }

// Mov is mov r64, imm64.
func (a *Asm) Mov(r Reg, v uint64) *Asm {
	a.Bytes(0x48, 0xb8+byte(r))
	a.Code = binary.LittleEndian.AppendUint64(a.Code, v)
	return a
}

// pad fills with nops up to addr.
func (a *Asm) pad(addr uint64) {
	for a.Here() < addr {
		a.Bytes(0x90)
	}
}

// Store8, Store16, Store32 and Store64 are mov [base], r.
func (a *Asm) Store8(base, r Reg) *Asm  { return a.Bytes(0x88).mem(base, byte(r)) }
func (a *Asm) Store16(base, r Reg) *Asm { return a.Bytes(0x66, 0x89).mem(base, byte(r)) }
func (a *Asm) Store32(base, r Reg) *Asm { return a.Bytes(0x89).mem(base, byte(r)) }
func (a *Asm) Store64(base, r Reg) *Asm { return a.Bytes(0x48, 0x89).mem(base, byte(r)) }

// Load8, Load16, Load32 and Load64 are mov r, [base].
func (a *Asm) Load8(r, base Reg) *Asm  { return a.Bytes(0x8a).mem(base, byte(r)) }
func (a *Asm) Load16(r, base Reg) *Asm { return a.Bytes(0x66, 0x8b).mem(base, byte(r)) }
func (a *Asm) Load32(r, base Reg) *Asm { return a.Bytes(0x8b).mem(base, byte(r)) }
func (a *Asm) Load64(r, base Reg) *Asm { return a.Bytes(0x48, 0x8b).mem(base, byte(r)) }

// Out8, Out16 and Out32 write AL, AX and EAX to the port DX; In8, In16 and In32 read it.
func (a *Asm) Out8() *Asm  { return a.Bytes(0xee) }
func (a *Asm) Out16() *Asm { return a.Bytes(0x66, 0xef) }
func (a *Asm) Out32() *Asm { return a.Bytes(0xef) }
func (a *Asm) In8() *Asm   { return a.Bytes(0xec) }
func (a *Asm) In16() *Asm  { return a.Bytes(0x66, 0xed) }
func (a *Asm) In32() *Asm  { return a.Bytes(0xed) }

// Inc is inc r64; IncMem is inc qword [base].
func (a *Asm) Inc(r Reg) *Asm       { return a.Bytes(0x48, 0xff, 0xc0+byte(r)) }
func (a *Asm) IncMem(base Reg) *Asm { return a.Bytes(0x48, 0xff).mem(base, 0) }

// Jmp jumps to target.
func (a *Asm) Jmp(target uint64) *Asm {
	a.Bytes(0xe9)
	return a.imm32(uint32(target - a.Here() - 4))
}

// Push and Pop are push r64 and pop r64; PushImm pushes v, sign-extended.
func (a *Asm) Push(r Reg) *Asm       { return a.Bytes(0x50 + byte(r)) }
func (a *Asm) Pop(r Reg) *Asm        { return a.Bytes(0x58 + byte(r)) }
func (a *Asm) PushImm(v uint32) *Asm { return a.Bytes(0x68).imm32(v) }

// Lidt is lidt [base]; Ltr is ltr ax; the others are named like their instruction.
func (a *Asm) Lidt(base Reg) *Asm { return a.Bytes(0x0f, 0x01).mem(base, 3) }
func (a *Asm) Ltr() *Asm          { return a.Bytes(0x0f, 0x00, 0xd8) }
func (a *Asm) Iretq() *Asm        { return a.Bytes(0x48, 0xcf) }
func (a *Asm) Hlt() *Asm          { return a.Bytes(0xf4) }
func (a *Asm) Sti() *Asm          { return a.Bytes(0xfb) }
func (a *Asm) Cli() *Asm          { return a.Bytes(0xfa) }

// Spin is an endless loop.
func (a *Asm) Spin() *Asm { return a.Jmp(a.Here()) }
