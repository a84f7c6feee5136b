export { freePort as commonPort } from './support/ports.ts'
