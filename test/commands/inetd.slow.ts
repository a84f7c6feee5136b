import { manyConnections, test } from '../inetd/client.ts'

test('a thousand connections leave no zombie and no descriptor', t => manyConnections(t, 1000))
