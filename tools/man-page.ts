/** The man page, made from the table of verbs and flags, as --help is. Pure. */
import {
  envText,
  type Flag,
  type FlagName,
  flags,
  flagText,
  helpText,
  type VerbName,
  verbs,
} from '../src/commands/options.ts'

/** Text for troff: a hyphen that is typed as one, and no line that begins as a request does. */
const escapeText = (text: string): string =>
  text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('…', '...')
    .replace(/^(?=[.'])/gm, '\\&')

/** The summary of a verb begins in lower case and has no full stop, for the list in --help. */
const sentence = (text: string): string => `${text.slice(0, 1).toUpperCase()}${text.slice(1)}.`

function flagEntry(verb: VerbName, name: FlagName, fallback: string | null): string[] {
  const { short, value, repeat }: Flag = flags[name]
  const names = [...(short ? [short] : []), flagText(name)].map(text => `\\fB${escapeText(text)}\\fR`)
  const facts = [
    ...(fallback === null || !value ? [] : [`default: ${fallback}`]),
    ...(repeat ? ['repeatable'] : []),
    envText(name),
  ]
  return [
    '.TP',
    `${names.join(', ')}${value ? ` \\fI${escapeText(value)}\\fR` : ''}`,
    escapeText(`${helpText(verb, name)} (${facts.join('; ')})`),
  ]
}

function verbEntry(verb: VerbName): string[] {
  const { summary, args, flags: defaults } = verbs[verb]
  const synopsis = [verb, '[OPTION...]', ...args.map(({ name }) => name)].join(' ')
  return [
    `.SS ${escapeText(synopsis)}`,
    escapeText(sentence(summary)),
    ...args.flatMap(({ name, help }) => ['.TP', `\\fI${escapeText(name)}\\fR`, escapeText(help)]),
    ...Object.entries<string | null>(defaults).flatMap(([name, fallback]) =>
      flagEntry(verb, name as FlagName, fallback),
    ),
  ]
}

export function manPage({ version, description }: { version: string; description: string }): string {
  const lines = [
    `.TH ROUNDELAY 1 "" "Roundelay ${version}" "User Commands"`,
    '.nh',
    '.SH NAME',
    `roundelay \\- ${escapeText(description)}`,
    '.SH SYNOPSIS',
    '.B roundelay',
    '\\fIVERB\\fR [\\fIOPTION\\fR...] [\\fIARGUMENT\\fR...]',
    '.SH DESCRIPTION',
    'Roundelay runs echo servers (RFC 862) and the authoritative DNS server that rotates over them.',
    '\\fBroundelay up\\fR starts a whole farm on this machine.',
    '.PP',
    'Each option has a twin in the environment, which is named with it.',
    'An option goes before the environment, and the environment before the default.',
    'A repeatable option takes several values in the environment, separated by spaces.',
    'Times are written as 500ms, 7s or 1m.',
    '.SH VERBS',
    ...(Object.keys(verbs) as VerbName[]).flatMap(verbEntry),
    '.SH EXIT STATUS',
    ...[
      ['0', 'Success.'],
      ['1', 'The command failed while it ran.'],
      ['2', 'The command line is wrong, or an address cannot be listened on.'],
      ['130, 143', 'A signal ended the command before it was ready, or a second signal ended it at once.'],
    ].flatMap(([code, meaning]) => ['.TP', `${code}`, `${meaning}`]),
    '.SH SEE ALSO',
    '.BR dig (1),',
    '.BR inetd (8),',
    '.BR inetd.conf (5)',
  ]
  return `${lines.join('\n')}\n`
}
