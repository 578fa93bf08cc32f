package oz

import (
	"encoding/base64"
	"math/rand/v2"
	"strings"
)

// sampleFolder is a folder as Oz Instant answers it, with shot as the text of
// its best shot and whatever status words are given.
func sampleFolder(resolution, system, quality, shot string) string {
	return strings.NewReplacer("$RESOLUTION", resolution, "$SYSTEM", system, "$QUALITY", quality, "$SHOT", shot).Replace(`{
  "folder_id": "7b1f2c52-0c0d-4f5e-9a51-5a3f0e8d1c01",
  "time_created": 1764000000.1,
  "company_id": null,
  "resolution_status": "$RESOLUTION",
  "system_resolution": "$SYSTEM",
  "resolution_comment": "[]",
  "operator_status": null,
  "is_cleared": false,
  "meta_data": {
    "event_session_id": "0d7f6f0e-3f0a-4c1b-8d57-0f1a5f1c9e02",
    "transaction_id": "order-1",
    "phone_info": {"model": "Pixel 9", "os_version": "16"}
  },
  "technical_meta_data": {},
  "media": [
    {
      "media_id": "c0a1b2c3-1111-4a2b-8c3d-9e8f7a6b5c03",
      "media_type": "VIDEO_FOLDER",
      "original_name": "video_selfie_blank.mp4",
      "original_url": null,
      "tags": ["video_selfie", "video_selfie_blank", "orientation_portrait"],
      "meta_data": {}
    }
  ],
  "analyses": [
    {
      "analyse_id": "e1d2c3b4-3333-4c4d-8e5f-1a2b3c4d5e05",
      "group_id": "a9b8c7d6-4444-4d5e-9f60-2b3c4d5e6f06",
      "type": "QUALITY",
      "state": "FINISHED",
      "resolution_status": "$QUALITY",
      "error_code": null,
      "error_message": null,
      "results_data": {"confidence_spoofing": 0.0579},
      "results_media": [
        {
          "source_video_id": "c0a1b2c3-1111-4a2b-8c3d-9e8f7a6b5c03",
          "results_data": {"confidence_spoofing": 5.79e-2},
          "output_images": [
            {
              "media_id": "b7a69584-5555-4e6f-8071-3c4d5e6f7a07",
              "original_name": "best_shot.jpg",
              "original_url": null,
              "image_b64": "$SHOT"
            }
          ]
        }
      ],
      "source_media": [{"media_id": "c0a1b2c3-1111-4a2b-8c3d-9e8f7a6b5c03", "tags": ["video_selfie"]}]
    }
  ]
}`)
}

// goodFolder is the folder of an accepted user, with a best shot of size bytes.
func goodFolder(size int) string {
	return sampleFolder(wordFinished, wordSuccess, wordSuccess, bestShot(size))
}

// bestShot is base64 text of about size bytes, the same each time.
func bestShot(size int) string {
	raw := make([]byte, size*3/4)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(raw)
	return base64.StdEncoding.EncodeToString(raw)
}

// image wraps the members of an output image into the objects and arrays on
// the way to it.
func image(members string) string {
	return `{"analyses":[{"results_media":[{"output_images":[{` + members + `}]}]}]}`
}
