// Whether to cut best shots from the text before it is parsed, which is quicker than to parse and then delete them.
const cutFirst = {$CUT_FIRST};

// Sends a capsule to Oz, decides, and hands the folder without its best shot on to the app.
async function verify(r) {
	if (r.method !== 'POST') {
		r.return(405);
		return;
	}
	const answer = await r.subrequest('/oz', {method: 'POST'});
	if (answer.status !== 201) {
		r.error('oz answered with ' + answer.status);
		r.return(502);
		return;
	}
	let folder;
	try {
		folder = JSON.parse(cutFirst ? withoutBestShots(answer.responseText) : answer.responseText);
	} catch (e) {
		r.error('oz answered with no JSON');
		r.return(502);
		return;
	}
	r.variables.oz_decision = decide(folder);
	r.variables.oz_folder = folder.folder_id;
	dropBestShots(folder);
	const reply = await r.subrequest('/app', {method: 'POST', body: JSON.stringify(folder)});
	for (const name in reply.headersOut) {
		if (name !== 'Content-Length' && name !== 'Connection' && name !== 'Date') {
			r.headersOut[name] = reply.headersOut[name];
		}
	}
	r.return(reply.status, reply.responseBuffer);
}

function decide(folder) {
	const resolution = folder.system_resolution;
	return folder.resolution_status === 'FINISHED' && (resolution === 'SUCCESS' || resolution === 'DECLINED') ? resolution : 'FAILED';
}

function dropBestShots(folder) {
	(folder.analyses || []).forEach((analysis) =>
		(analysis.results_media || []).forEach((media) =>
			(media.output_images || []).forEach((image) => { delete image.image_b64; })));
}

// The name in quotes is nowhere but at a member: inside a string they would be escaped. Base64 has no quotes. indexOf, which compares
// at each place, takes njs three times as long.
function withoutBestShots(text) {
	return text.replace(/("image_b64"\s*:\s*")[^"]*/g, '$1');
}

export default {verify};
