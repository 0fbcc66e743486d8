// nodemailer's pool, a transporter for each account, limits as the service's accounts have them:
// `node nodemailer.js FILE`, with the facts as JSON. Nothing is queued and nothing is written down.
const fs = require("fs");
const nodemailer = require(process.env.PEER_NODEMAILER);

const facts = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ca = fs.readFileSync(process.env.SSL_CERT_FILE);
const transports = facts.senders.map((user) =>
  nodemailer.createTransport({
    // An address, so that its own resolver is not what is measured.
    host: "127.0.0.1", port: Number(process.env.PEER_SMTP_PORT), requireTLS: true, name: "client.example",
    auth: { user, pass: process.env.PEER_SMTP_PASSWORD }, tls: { ca, servername: "localhost" },
    pool: true, maxConnections: 4, maxMessages: 100,
  }),
);

async function main() {
  const sends = [];
  for (let n = 0; n < facts.count; n++) {
    const at = n % facts.senders.length;
    const raw = Buffer.from(facts.mime.replace("MESSAGE-ID", `<${n}.${facts.run}@peer.example>`), "latin1");
    sends.push(transports[at].sendMail({ envelope: { from: facts.senders[at], to: [`to${n}@rcpt.example`] }, raw }));
  }
  await Promise.all(sends);
  transports.forEach((transport) => transport.close());
}
main();
